//! A gateway that has heard no control node for too long lets nobody new in, if that is asked of it.

use std::time::Duration;

use hanse_proxy::runtime::now;
use hanse_proxy::staleness::{OnStale, Staleness};

use super::*;

#[test]
fn who_is_stale_lets_nobody_new_in_and_serves_who_is_there() {
    run(async {
        let mut world = World::open(8, 3600).await;
        let policy = Staleness { bound: Duration::from_secs(30), on_stale: OnStale::DenyNew };
        let strict = Plane::new("gateway-1".parse().unwrap(), Locality::default()).with_staleness(policy);
        strict.credentials.install_svid(&world.east.gateway()).unwrap();
        world.door = Running::start_with(Arc::new(strict), 8).await;
        let door = &world.door;
        door.plane().publish(Arc::new(world.east_view.clone()));
        let west_view = view(&world.west, &world.east, Some(door.tunnel));
        world.out.plane().publish(Arc::new(View { revision: Revision(9), ..west_view }));

        assert!(world.tunnel().await.is_err(), "it has never heard a control node");
        door.plane().knowledge.heard(now());
        let mut tunnel = world.tunnel().await.unwrap();
        let mut stream = begun(&mut tunnel).await;

        door.plane().knowledge.heard(now() - Duration::from_secs(31));
        assert!(world.tunnel().await.is_err());
        assert_eq!(door.refused("stale_revocations"), 2);
        echoes(&mut stream).await;
        begun(&mut tunnel).await;

        door.plane().knowledge.heard(now());
        assert!(world.tunnel().await.is_ok());
    });
}
