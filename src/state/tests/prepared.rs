//! Networks that wait for a pod, and pods that ask for the address of one.

use super::*;
use crate::lifecycle::address::REQUESTED;
use crate::state::network::Allocation;

/// A range with both families, and room for networks that wait.
fn wide() -> Pool {
    Pool {
        subnet6: "fd00:5:5::/64".parse().ok(),
        prepared: 1,
        ..pool().expect("a pool")
    }
}

/// A network that waits, made for this range.
async fn waiting(engine: &Engine, pool: &Pool) -> Allocation {
    let reserved = engine
        .observed
        .reserve_prepared(pool.clone(), "boot".into())
        .await;
    let [id] = <[_; 1]>::try_from(reserved.expect("rows")).expect("one network");
    let ready = engine.observed.prepared_is_ready(id.clone()).await;
    ready.expect("a row");
    let allocation = engine.store.allocation(&id).await.expect("a row");
    allocation.expect("an address")
}

async fn ask(engine: &Engine, address: &str, pool: &Pool) -> Result<SandboxId, StateError> {
    let mut spec = pod("asking");
    spec.annotations.insert(REQUESTED.into(), address.into());
    engine
        .desired
        .run_sandbox(SandboxId::random(), spec, Some(pool.clone()))
        .await
}

#[tokio::test]
async fn a_waiting_network_with_the_address_that_is_asked_for_is_taken() {
    let engine = engine().await;
    let waits = waiting(&engine, &wide()).await;
    let id = ask(&engine, &waits.address.to_string(), &wide()).await;
    assert_eq!(id.expect("a sandbox").as_str(), waits.sandbox_id);
}

/// Each was made before the configuration or the range was changed, and no look has dropped it yet.
#[tokio::test]
async fn a_waiting_network_that_no_longer_fits_makes_room_for_who_asks_for_its_address() {
    type Change = fn(&mut Pool);
    let changes: [(&str, Change); 5] = [
        ("MTU", |pool| pool.mtu = 1400),
        ("bridge", |pool| pool.bridge = "other".into()),
        ("gateway", |pool| {
            pool.gateway = "10.1.2.254".parse().expect("an address");
        }),
        ("prefix", |pool| {
            pool.subnet = "10.1.2.0/25".parse().expect("a subnet");
        }),
        ("IPv6 range", |pool| {
            pool.subnet6 = "fd00:6:6::/64".parse().ok();
        }),
    ];
    for (what, change) in changes {
        let engine = engine().await;
        let waits = waiting(&engine, &wide()).await;
        let mut now = wide();
        change(&mut now);
        let address = waits.address.to_string();
        let refused = ask(&engine, &address, &now).await;
        assert!(
            matches!(refused, Err(StateError::AddressLeaving { .. })),
            "another {what}: {refused:?}"
        );
        // Once its link is gone the address is the pod's, with all that is new.
        let left = engine.store.prepared_networks().await.expect("rows");
        assert_eq!(left, [], "another {what}");
        let gone = SandboxId::try_from(waits.sandbox_id.clone()).expect("an id");
        let gone = engine.observed.prepared_are_gone(vec![gone]).await;
        gone.expect("no row");
        let id = ask(&engine, &address, &now).await.expect("a sandbox");
        assert_ne!(id.as_str(), waits.sandbox_id, "another {what}");
        let given = engine.store.allocation(&id).await.expect("a row");
        let given = given.expect("an address");
        assert_eq!(given.address.to_string(), address);
        assert_eq!(given.gateway, now.gateway);
        assert_eq!(given.bridge, now.bridge);
        assert_eq!(given.ipv6.map(|ipv6| ipv6.gateway), now.gateway6());
    }
}
