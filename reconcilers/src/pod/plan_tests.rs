//! What the plan of a pod decides, and that it comes to rest.

use std::sync::Arc;

use schemas::Object;
use serde_json::{Value, json};

use super::*;
use crate::pod::memory::Failure;
use crate::pod::probe::ProbeResults;
use crate::ports::{Attachment, ContainerNetwork};

fn pod(spec: Value) -> DesiredPod {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "uid": "u" }, "spec": spec,
    });
    DesiredPod::read(Arc::new(Object::from_value(object).unwrap())).unwrap()
}

fn web() -> DesiredPod {
    pod(json!({ "containers": [{ "name": "c", "image": "web:1" }] }))
}

fn container(pod: &DesiredPod, attempt: u32, state: ContainerState) -> Container {
    let hash = spec_hash(&pod.spec().containers[0]);
    let labels = [
        (labels::CONTAINER_NAME, "c".to_owned()),
        (labels::SPEC_HASH, hash),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::POD_IP, "10.244.1.2".to_owned()),
    ];
    Container {
        id: ContainerId(format!("id-{attempt}")),
        name: format!("c-{attempt}"),
        image: "web:1".to_owned(),
        image_id: String::new(),
        labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
        state,
    }
}

fn running() -> ContainerState {
    ContainerState::Running {
        pid: 1,
        started_unix_seconds: 0,
    }
}

fn exited(code: i32) -> ContainerState {
    ContainerState::Exited {
        code,
        oom_killed: false,
        started_unix_seconds: 0,
        finished_unix_seconds: 0,
    }
}

fn attached() -> PodMemory {
    PodMemory {
        attachment: Some(Attachment {
            address: "10.244.1.2".parse().unwrap(),
            network: ContainerNetwork::Namespace("/run/netns/u".into()),
        }),
        redirects: Some(Vec::new()),
        ..PodMemory::default()
    }
}

const NOW: Moment = Moment(Duration::from_secs(1000));

fn observed(mut memory: PodMemory, pod: &DesiredPod, containers: &[Container]) -> PodMemory {
    memory.observe(containers, NOW, |name, running| {
        ProbeResults::before(running, pod.container(name), 0)
    });
    memory
}

fn plan_of(pod: &DesiredPod, containers: &[Container], memory: &PodMemory) -> Plan {
    let memory = observed(memory.clone(), pod, containers);
    let wanted = Wanted::Running { pod, redirects: &[] };
    plan(&wanted, containers, &memory, NOW)
}

fn run(attempt: u32) -> [Action; 2] {
    let container = "c".to_owned();
    [
        Action::Pull {
            container: container.clone(),
        },
        Action::Run { container, attempt },
    ]
}

#[test]
fn a_new_pod_is_set_up_in_order() {
    let pod = pod(json!({ "volumes": [{ "name": "v", "emptyDir": {} }],
                          "containers": [{ "name": "c", "image": "web:1" }] }));
    let [pull, run] = run(0);
    let actions = plan_of(&pod, &[], &PodMemory::default()).actions;
    assert_eq!(actions, [Action::MakeVolumes, Action::Attach, pull, run]);
}

#[test]
fn what_runs_needs_nothing() {
    let pod = web();
    let containers = [container(&pod, 0, running())];
    assert_eq!(plan_of(&pod, &containers, &attached()), Plan::default());
}

#[test]
fn an_adopted_pod_is_attached_again_and_its_redirects_are_set() {
    let pod = web();
    let containers = [container(&pod, 0, running())];
    let actions = plan_of(&pod, &containers, &PodMemory::default()).actions;
    assert_eq!(actions, [Action::Attach, Action::SetRedirects(vec![])]);
}

#[test]
fn a_host_network_pod_has_no_redirects() {
    let pod = pod(json!({ "hostNetwork": true, "containers": [{ "name": "c", "image": "web:1" }] }));
    let redirect = PortRedirect {
        protocol: crate::ports::Protocol::Tcp,
        from: 80,
        to: 8080,
    };
    let containers = [container(&pod, 0, running())];
    let wanted = Wanted::Running {
        pod: &pod,
        redirects: &[redirect],
    };
    let memory = observed(attached(), &pod, &containers);
    assert_eq!(plan(&wanted, &containers, &memory, NOW), Plan::default());
}

#[test]
fn the_replaced_attempt_stays_and_older_ones_go() {
    let pod = web();
    let containers = [0, 1, 2].map(|attempt| container(&pod, attempt, exited(1)));
    let removed = Action::Remove {
        containers: vec![containers[0].id.clone(), containers[1].id.clone()],
    };
    let [pull, run] = run(3);
    let mut actions = plan_of(&pod, &containers, &attached()).actions;
    if let Some(Action::Remove { containers }) = actions.last_mut() {
        containers.sort();
    }
    assert_eq!(actions, [pull, run, removed]);
}

#[test]
fn a_container_left_created_is_started_if_its_address_is_still_the_pods() {
    let pod = web();
    let mut created = container(&pod, 0, ContainerState::Created);
    let start = Action::Start {
        container: "c".to_owned(),
        id: created.id.clone(),
    };
    assert_eq!(
        plan_of(&pod, std::slice::from_ref(&created), &attached()).actions,
        [start]
    );
    let before = plan_of(&pod, std::slice::from_ref(&created), &PodMemory::default()).actions;
    assert_eq!(
        before,
        [Action::Attach, Action::SetRedirects(vec![])],
        "the address must be known first"
    );

    created
        .labels
        .insert(labels::POD_IP.to_owned(), "10.244.9.9".to_owned());
    let [pull, run] = run(1);
    let remove = Action::Remove {
        containers: vec![created.id.clone()],
    };
    assert_eq!(
        plan_of(&pod, &[created], &attached()).actions,
        [remove, pull, run]
    );
}

#[test]
fn a_second_container_that_runs_is_stopped() {
    let pod = web();
    let containers = [container(&pod, 0, running()), container(&pod, 1, running())];
    let actions = plan_of(&pod, &containers, &attached()).actions;
    let stop = Action::Stop {
        containers: vec![containers[0].id.clone()],
        grace: Duration::from_secs(30),
        why: StopReason::Unwanted,
    };
    assert_eq!(actions, [stop]);
}

#[test]
fn failures_wait_and_keep_what_runs() {
    let two = json!([{ "name": "c", "image": "web:1" }, { "name": "d", "image": "bad:1" }]);
    let pod = pod(json!({ "containers": two }));
    let containers = [container(&pod, 0, running())];
    let mut memory = attached();
    let failure = Failure::again(None, "ErrImagePull", String::new(), NOW);
    memory.containers.entry("d".to_owned()).or_default().failure = Some(failure);
    let planned = plan_of(&pod, &containers, &memory);
    assert_eq!(
        (planned.actions.as_slice(), planned.again),
        (&[][..], Some(Duration::from_secs(2)))
    );
}

#[test]
fn an_ended_pod_loses_its_containers_last() {
    let pod = web();
    let containers = [container(&pod, 0, exited(1)), container(&pod, 1, running())];
    let grace = Duration::from_secs(7);
    let wanted = Wanted::Ended {
        grace,
        remove_object: true,
    };
    let ids: Vec<_> = containers.iter().map(|container| container.id.clone()).collect();
    let stop = Action::Stop {
        containers: vec![ids[1].clone()],
        grace,
        why: StopReason::Ended,
    };
    let actions = plan(&wanted, &containers, &attached(), NOW).actions;
    let remove = Action::Remove { containers: ids };
    let expected = [
        stop,
        Action::Detach,
        Action::RemoveVolumes,
        remove,
        Action::RemoveObject,
        Action::Forget,
    ];
    assert_eq!(actions, expected);
}

#[test]
fn containers_that_the_spec_does_not_name_go() {
    let pod = web();
    let mut stray = container(&pod, 0, running());
    stray
        .labels
        .insert(labels::CONTAINER_NAME.to_owned(), "old".to_owned());
    stray.id = ContainerId("stray".to_owned());
    let containers = [container(&pod, 0, running()), stray.clone()];
    let actions = plan_of(&pod, &containers, &attached()).actions;
    assert!(
        matches!(&actions[..], [Action::Stop { containers: stopped, .. }, Action::Remove { containers: removed }]
        if *stopped == [stray.id.clone()] && removed == stopped)
    );
}

#[test]
fn a_graceful_stop_has_the_shortest_grace_given() {
    let mut pod = pod(json!({ "terminationGracePeriodSeconds": 60, "containers": [] }));
    assert_eq!(grace(&pod), Duration::from_secs(60));
    let mut object = (*pod.object).clone();
    object.set(&["metadata", "deletionGracePeriodSeconds"], 0);
    pod.object = Arc::new(object);
    assert_eq!(grace(&pod), Duration::ZERO);
}
