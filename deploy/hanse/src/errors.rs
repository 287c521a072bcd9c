//! How a command ends: the exit code table of the whole product, and the error block (what, why, fix).

use serde::Serialize;

/// Exit codes. Stable: scripts branch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    No = 1,
    Usage = 2,
    Unreachable = 3,
    NotAllowed = 4,
    NotFound = 5,
    Precondition = 6,
    NoLeader = 7,
    TimedOut = 8,
    Partial = 9,
    Unreadable = 10,
    Bug = 70,
    Interrupted = 130,
}

/// The table, as `hanse help exit-codes` prints it.
pub const TABLE: [(u8, &str); 14] = [
    (0, "done, nothing to complain about"),
    (
        1,
        "the command worked and the answer is \"no\": a check failed, a file is invalid, a step did not hold",
    ),
    (2, "bad command line"),
    (3, "control plane unreachable: refused, name not found, pinned root does not match"),
    (4, "not authenticated, or not allowed"),
    (5, "object not found"),
    (6, "precondition failed: name taken, token used, would break something"),
    (7, "no Raft leader or no quorum: retry later"),
    (8, "timed out while waiting; the last state is printed"),
    (9, "partial: at least one cluster or subscriber did not answer or is behind"),
    (10, "input file cannot be read or parsed"),
    (70, "a bug of ours"),
    (130, "interrupted"),
    (143, "terminated"),
];

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// `E1001` …: E1 usage and configuration, E2 trust and join, E3 Raft and storage, E4 policy, E5 data plane,
    /// E6 federation, E9 internal.
    pub code: &'static str,
    #[serde(serialize_with = "exit_number")]
    pub exit: Exit,
    pub message: String,
    /// What was seen.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// Why that is so, as far as it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

// The `&` is what serde calls it with.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn exit_number<S: serde::Serializer>(exit: &Exit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(*exit as u8)
}

impl Failure {
    pub fn new(exit: Exit, code: &'static str, message: impl Into<String>) -> Self {
        let empty = String::new;
        Self { code, exit, message: message.into(), what: empty(), why: empty(), fix: empty() }
    }

    pub fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// A command line that clap could not know to be wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "E1001", message)
    }

    /// A file that cannot be read or understood.
    pub fn unreadable(path: &std::path::Path, why: impl std::fmt::Display) -> Self {
        Self::new(Exit::Unreadable, "E1003", format!("cannot read {}: {why}", path.display()))
    }

    /// Says it on stderr: a block for people, JSON for programs. stdout stays empty.
    pub fn print(&self, json: bool) {
        if json {
            let document = serde_json::json!({
                "apiVersion": crate::output::API_VERSION, "kind": "Error", "error": self,
            });
            eprintln!("{document}");
            return;
        }
        eprint!("{}", self.block());
    }

    fn block(&self) -> String {
        let mut block = format!("error[{}]: {}\n", self.code, self.message);
        for (label, text) in [("what", &self.what), ("why", &self.why), ("fix", &self.fix)] {
            for (index, line) in text.lines().enumerate() {
                let label = if index == 0 { label } else { "" };
                block.push_str(&format!("  {label:<5} {line}\n"));
            }
        }
        block
    }
}

/// Whatever the demo or a role reports as a chain of causes.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(error) => Self::new(Exit::No, "E1000", format!("{error:#}")),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        for text in [&self.what, &self.why] {
            if !text.is_empty() {
                write!(f, "; {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_names_what_why_and_fix() {
        let failure = Failure::new(Exit::NotFound, "E4001", "no such policy")
            .what("asked for HTTPRoute shop/x")
            .fix("hanse policy get\nhanse policy apply -f FILE");
        assert_eq!(
            failure.block(),
            "error[E4001]: no such policy\n  what  asked for HTTPRoute shop/x\n  fix   hanse policy get\n        hanse policy apply -f FILE\n"
        );
    }

    #[test]
    fn a_failure_survives_a_chain_of_causes() {
        let failure = Failure::usage("no");
        let error: anyhow::Error = failure.clone().into();
        assert_eq!(Failure::from(error), failure);
        assert_eq!(serde_json::to_value(&failure).unwrap()["exit"], 2);
    }
}
