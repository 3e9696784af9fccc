//! Probes of containers, also over a restart of the agent.

use super::*;

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_probe() {
    let mut spec = web();
    spec["containers"][0]["readinessProbe"] =
        json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "failureThreshold": 2 });
    let mut machine = Machine::new(spec).await;
    machine.settle().await;
    assert!(!machine.ready(), "not before the probe says so");
    for healthy in [true, false, true] {
        machine.prober.healthy.store(healthy, Ordering::SeqCst);
        while machine.ready() != healthy {
            let woken = tokio::time::timeout(Duration::from_secs(10), machine.woken.recv()).await;
            assert!(woken.is_ok(), "the probe changes nothing");
            machine.settle().await;
        }
    }
    machine.restart_agent().await;
    machine.settle().await;
    assert!(
        !machine.runner.adopting().borrow().is_empty(),
        "the probe is yet to answer"
    );
    machine.woken.recv().await;
    machine.settle().await;
    assert!(machine.ready() && machine.runner.adopting().borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_restart_does_not_doubt_what_ran_before() {
    let probe = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "successThreshold": 2 });
    let mut spec = web();
    spec["containers"][0]["readinessProbe"] = probe;
    let mut machine = Machine::new(spec).await;
    machine.prober.healthy.store(true, Ordering::SeqCst);
    machine.settle().await;
    while !machine.ready() {
        machine.woken.recv().await;
        machine.settle().await;
    }
    let before = machine.status();
    machine.clock.advance(Duration::from_secs(60));
    machine.restart_agent().await;
    machine.settle().await;
    machine.woken.recv().await;
    machine.settle().await;
    assert_eq!(
        machine.status(),
        before,
        "one success is enough, and nothing begins anew"
    );
    assert!(machine.runner.adopting().borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_is_over_once_it_would_have_failed() {
    let mut spec = web();
    spec["containers"][0]["startupProbe"] =
        json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "failureThreshold": 5 });
    let mut machine = Machine::new(spec).await;
    machine.prober.healthy.store(true, Ordering::SeqCst);
    machine.settle().await;
    machine.restart_agent().await;
    machine.settle().await;
    assert!(
        !machine.runner.adopting().borrow().is_empty(),
        "it may still be starting"
    );
    machine.woken.recv().await;
    machine.settle().await;
    assert!(machine.ready() && machine.runner.adopting().borrow().is_empty());
    machine.prober.healthy.store(false, Ordering::SeqCst);
    machine.clock.advance(Duration::from_secs(60));
    machine.restart_agent().await;
    machine.settle().await;
    assert!(machine.ready() && machine.runner.adopting().borrow().is_empty());
    tokio::time::sleep(Duration::from_secs(60)).await;
    machine.settle().await;
    assert_eq!(machine.names(), ["web_default_c_uid-0001_0"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts_the_container() {
    let mut spec = web();
    spec["containers"][0]["startupProbe"] = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1 });
    spec["containers"][0]["livenessProbe"] =
        json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "failureThreshold": 2 });
    let mut machine = Machine::new(spec).await;
    machine.prober.healthy.store(true, Ordering::SeqCst);
    machine.settle().await;
    machine.woken.recv().await;
    machine.settle().await;
    assert_eq!(machine.at("/containerStatuses/0/started"), true);
    machine.prober.healthy.store(false, Ordering::SeqCst);
    machine.woken.recv().await;
    machine.settle().await;
    assert_eq!(machine.names(), ["web_default_c_uid-0001_1"]);
    let reasons = machine.reasons();
    assert!(
        reasons.contains(&"Unhealthy") && reasons.contains(&"Killing"),
        "{reasons:?}"
    );
}
