//! `audit list`: a page of the trail that is in the State.

use tonic::Status;

use super::Call;
use crate::admin::{AUDIT_PAGE, AuditList, AuditListRequest, MAX_AUDIT_PAGE};

pub async fn list(call: Call, request: AuditListRequest) -> Result<AuditList, Status> {
    let reading = call.read().await;
    let trail = &reading.state.private.audit;
    let limit = request.limit.unwrap_or(AUDIT_PAGE).clamp(1, MAX_AUDIT_PAGE);
    let mut rows = trail.newest().filter(|row| request.admits(row));
    let items: Vec<_> = rows.by_ref().take(limit).cloned().collect();
    let next = rows.next().and_then(|_| items.last()).map(|last| last.revision);
    let forgotten = trail.forgotten();
    Ok(AuditList { meta: reading.meta, items, next, forgotten, warnings: reading.warnings })
}
