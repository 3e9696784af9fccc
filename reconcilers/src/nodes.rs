//! The admitted nodes as planners see them: who is a member, who is alive, what each can carry.
//!
//! Membership is desired state (Member documents), liveness is observed; this joins both. The Node objects that users see
//! are made in [`crate::node_object`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use schemas::Object;
use store::NodeId;

use crate::ports::{Cluster, Liveness, Moment, NodeFacts};

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
        let unschedulable: BTreeMap<&str, bool> = node_objects
            .iter()
            .map(|node| (node.name(), flag(node, "/spec/unschedulable")))
            .collect();
        let mut candidates: Vec<(bool, NodeState)> = members
            .iter()
            .map(|member| {
                let cordoned = flag(member, "/spec/cordoned");
                let name = member.str_at("/spec/name");
                let user_cordoned = unschedulable.get(name).copied().unwrap_or_default();
                (cordoned, node_state(member, cordoned || user_cordoned, cluster))
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
    object.pointer(pointer).and_then(serde_json::Value::as_bool) == Some(true)
}

fn node_state(member: &Object, unschedulable: bool, cluster: &Cluster) -> NodeState {
    let id = NodeId(member.name().to_owned());
    let observation = cluster.nodes.get(&id);
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
        unschedulable,
        facts: observation.map(|node| node.facts.clone()).unwrap_or_default(),
        id,
    }
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
        assert_eq!(one.address, "10.0.0.1".parse().ok());
    }
}
