//! The admitted nodes as planners see them: who is a member, who is alive, what each can carry.
//!
//! Membership is desired state (Member documents), liveness is observed; this joins both. The Node objects that users see
//! are made in [`crate::node_object`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use schemas::Object;
use serde_json::Value;
use store::NodeId;

use crate::ports::{Cluster, Liveness, Moment, NodeFacts};

/// Kubernetes' taint of a cordoned node.
pub(crate) const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// What keeps pods away that do not tolerate it. Source: Kubernetes API, `Taint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// One admitted node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    pub id: NodeId,
    /// Uid of its Member document: another one after it left and joined again.
    pub uid: String,
    /// What `spec.nodeName` of its pods says.
    pub name: String,
    pub address: Option<IpAddr>,
    pub liveness: Liveness,
    /// When `liveness` took this value; for a node that gossip has not shown, the start of this agent.
    pub since: Moment,
    /// As in [`crate::ports::NodeObservation::in_sync`].
    pub in_sync: bool,
    /// Gossip has shown it since this agent started. An unseen node counts as dead, after a longer grace.
    pub seen: bool,
    /// Takes no new pods (`kubectl cordon`).
    pub unschedulable: bool,
    /// Those that the node says of itself, and those that users set on the Node object.
    pub labels: BTreeMap<String, String>,
    /// Users' taints; that of a cordon is `unschedulable`.
    pub taints: Vec<Taint>,
    pub facts: NodeFacts,
}

impl NodeState {
    /// Returns the value of [`crate::pod_state::MEMBER_ANNOTATION`] for pods on this node.
    pub fn member(&self) -> String {
        format!("{}/{}", self.id, self.uid)
    }
}

/// All admitted nodes, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nodes(BTreeMap<String, NodeState>);

impl Nodes {
    /// Joins Member documents, Node documents (what users wrote, not what is shown of nodes) and gossip. Of two members with one name the one that is not cordoned counts,
    /// then the lower id.
    pub fn read(members: &[Arc<Object>], node_objects: &[Arc<Object>], cluster: &Cluster) -> Self {
        let written: BTreeMap<&str, &Object> = node_objects
            .iter()
            .map(|node| (node.name(), node.as_ref()))
            .collect();
        let mut candidates: Vec<(bool, NodeState)> = members
            .iter()
            .map(|member| {
                let cordoned = flag(member, "/spec/cordoned");
                let written = written.get(member.str_at("/spec/name")).copied();
                (cordoned, node_state(member, written, cluster))
            })
            .collect();
        candidates.sort_by(|(cordoned, one), (other_cordoned, other)| {
            (cordoned, &one.id).cmp(&(other_cordoned, &other.id))
        });
        let mut nodes = BTreeMap::new();
        for (_, node) in candidates {
            nodes.entry(node.name.clone()).or_insert(node);
        }
        Self(nodes)
    }

    pub fn get(&self, name: &str) -> Option<&NodeState> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &NodeState> {
        self.0.values()
    }
}

impl FromIterator<NodeState> for Nodes {
    fn from_iter<I: IntoIterator<Item = NodeState>>(nodes: I) -> Self {
        Self(nodes.into_iter().map(|node| (node.name.clone(), node)).collect())
    }
}

fn flag(object: &Object, pointer: &str) -> bool {
    object.pointer(pointer).and_then(Value::as_bool) == Some(true)
}

/// `written`: what users wrote to the Node object.
fn node_state(member: &Object, written: Option<&Object>, cluster: &Cluster) -> NodeState {
    let id = NodeId(member.name().to_owned());
    let observation = cluster.nodes.get(&id);
    let facts = observation.map(|node| node.facts.clone()).unwrap_or_default();
    let mut labels = written.map(labels).unwrap_or_default();
    labels.extend(facts.labels.clone());
    NodeState {
        uid: member.uid().to_owned(),
        name: member.str_at("/spec/name").to_owned(),
        address: observation
            .and_then(|node| node.facts.address)
            .or_else(|| member.str_at("/spec/address").parse().ok()),
        liveness: observation.map_or(Liveness::Dead, |node| node.liveness),
        since: observation.map_or(Moment::default(), |node| node.since),
        in_sync: observation.is_some_and(|node| node.in_sync),
        seen: observation.is_some(),
        unschedulable: flag(member, "/spec/cordoned")
            || written.is_some_and(|written| flag(written, "/spec/unschedulable")),
        labels,
        taints: written.map(taints).unwrap_or_default(),
        facts,
        id,
    }
}

fn labels(node: &Object) -> BTreeMap<String, String> {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn taints(node: &Object) -> Vec<Taint> {
    let text = |taint: &Value, field: &str| taint[field].as_str().unwrap_or_default().to_owned();
    let taints = node.pointer("/spec/taints").and_then(Value::as_array);
    taints
        .into_iter()
        .flatten()
        .map(|taint| Taint {
            key: text(taint, "key"),
            value: text(taint, "value"),
            effect: text(taint, "effect"),
        })
        // Clients that were shown a cordon write it back with the others.
        .filter(|taint| taint.key != UNSCHEDULABLE_TAINT)
        .collect()
}

/// Nodes for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A node that has been alive since the start, with 4 CPUs, 8 GiB and room for 110 pods.
    pub(crate) fn node(name: &str) -> NodeState {
        NodeState {
            id: NodeId(name.to_owned()),
            uid: format!("{name}-uid"),
            name: name.to_owned(),
            address: None,
            liveness: Liveness::Alive,
            since: Moment::default(),
            in_sync: true,
            seen: true,
            unschedulable: false,
            labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
            taints: Vec::new(),
            facts: NodeFacts {
                name: name.to_owned(),
                labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
                cpu_millis: 4000,
                memory_bytes: 8 << 30,
                max_pods: 110,
                ..NodeFacts::default()
            },
        }
    }

    impl NodeState {
        pub(crate) fn liveness(self, liveness: Liveness, since: Moment) -> Self {
            Self {
                liveness,
                since,
                ..self
            }
        }

        pub(crate) fn unseen(self) -> Self {
            Self {
                liveness: Liveness::Dead,
                seen: false,
                ..self
            }
        }
    }

    pub(crate) fn nodes(nodes: impl IntoIterator<Item = NodeState>) -> Nodes {
        nodes.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Kind, ObjectKey};
    use serde_json::json;

    use super::*;
    use crate::ports::NodeObservation;

    fn member(id: &str, spec: serde_json::Value) -> Arc<Object> {
        let mut member = Object::new(&ObjectKey::cluster(Kind::Member, id));
        member.set(&["spec"], spec);
        Arc::new(member)
    }

    #[test]
    fn members_count_observed_or_not_and_strangers_do_not() {
        let observation = NodeObservation {
            liveness: Liveness::Alive,
            since: Moment(std::time::Duration::from_secs(3)),
            in_sync: true,
            facts: NodeFacts::default(),
            pods: BTreeMap::new(),
        };
        let observed = ["a", "stranger"].map(|id| (NodeId(id.into()), Arc::new(observation.clone())));
        let cluster = Cluster {
            me: NodeId("a".into()),
            nodes: observed.into_iter().collect(),
        };
        let members = [
            member("a", json!({"name": "one", "address": "10.0.0.1"})),
            member("b", json!({"name": "two"})),
            member("c", json!({"name": "one"})),
        ];
        let mut cordoned = Object::new(&ObjectKey::cluster(Kind::Node, "two"));
        cordoned.set(&["spec", "unschedulable"], true);
        cordoned.set(&["metadata", "labels"], json!({"disk": "ssd"}));
        let taints = json!([
            {"key": UNSCHEDULABLE_TAINT, "effect": "NoSchedule"},
            {"key": "for", "value": "tests", "effect": "NoSchedule"},
        ]);
        cordoned.set(&["spec", "taints"], taints);
        let nodes = Nodes::read(&members, &[Arc::new(cordoned)], &cluster);
        let names: Vec<_> = nodes
            .iter()
            .map(|node| (node.name.as_str(), node.id.0.as_str()))
            .collect();
        assert_eq!(names, [("one", "a"), ("two", "b")]);
        let (one, two) = (nodes.get("one").unwrap(), nodes.get("two").unwrap());
        assert_eq!(
            (one.liveness, one.seen, one.unschedulable),
            (Liveness::Alive, true, false)
        );
        assert_eq!(
            (two.liveness, two.seen, two.unschedulable),
            (Liveness::Dead, false, true)
        );
        assert_eq!(two.labels, BTreeMap::from([("disk".into(), "ssd".into())]));
        let keys = two.taints.iter().map(|taint| taint.key.as_str());
        assert_eq!(keys.collect::<Vec<_>>(), ["for"], "the field tells of a cordon");
        assert_eq!(one.address, "10.0.0.1".parse().ok());
    }
}
