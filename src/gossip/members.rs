//! Who is admitted: the Member objects of the store, name = node id. What they say is desired state, so every node
//! reads the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use schemas::{Kind, Object, ObjectKey};
use store::{Author, NodeId, Precondition, Store, Via, WriteError};

/// The field manager of what this module writes.
const MANAGER: &str = "podman-swarm-membership";
/// One admitted node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// Where its peer port is.
    pub address: SocketAddr,
    /// Its pods' addresses come from here.
    pub pod_cidr: Option<IpNet>,
    /// Counts for majorities.
    pub voter: bool,
}

impl Member {
    /// Reads a Member object; None if it does not say who and where.
    pub fn from_object(object: &Object) -> Option<Self> {
        let address: IpAddr = object.str_at("/spec/address").parse().ok()?;
        let port = u16::try_from(object.i64_at("/spec/gossipPort")?).ok()?;
        Some(Self {
            id: NodeId(object.name().to_owned()),
            name: object.str_at("/spec/name").to_owned(),
            address: SocketAddr::new(address, port),
            pod_cidr: object.str_at("/spec/podCIDR").parse().ok(),
            voter: object
                .pointer("/spec/voter")
                .and_then(serde_json::Value::as_bool)
                .unwrap_or(false),
        })
    }

    /// Writes this member's fields into its object, and leaves others.
    pub(super) fn write_to(&self, object: &mut Object) {
        object.set(&["spec", "name"], self.name.clone());
        object.set(&["spec", "address"], self.address.ip().to_string());
        object.set(&["spec", "gossipPort"], self.address.port());
        if let Some(range) = self.pod_cidr {
            object.set(&["spec", "podCIDR"], range.to_string());
        }
        object.set(&["spec", "voter"], self.voter);
    }

    pub(super) fn to_object(&self) -> Object {
        let mut object = Object::new(&key(&self.id));
        self.write_to(&mut object);
        object
    }
}

/// The key of a node's Member object.
pub(super) fn key(node: &NodeId) -> ObjectKey {
    ObjectKey::cluster(Kind::Member, &node.0)
}

/// The author of changes of membership.
pub(super) fn author() -> Author {
    Author {
        manager: MANAGER.to_owned(),
        user: String::new(),
        via: Via::Controller,
        unix_seconds: unix_seconds(),
    }
}

/// Seconds since the Unix epoch, for timestamps, expiry and chitchat's generation.
pub(super) fn unix_seconds() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |duration| {
            i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
        })
}

/// All members that the store knows.
pub(super) fn list(store: &Store) -> BTreeMap<NodeId, Member> {
    store
        .list(Kind::Member, None)
        .items
        .iter()
        .filter_map(|view| Member::from_object(&view.object))
        .map(|member| (member.id.clone(), member))
        .collect()
}

/// Tells whether a node is admitted, as far as this node's store knows.
pub(super) fn is_admitted(store: &Store, node: &NodeId) -> bool {
    store.get(&key(node)).is_some()
}

/// Stores a member, whether it is new or known.
pub(super) async fn put(store: &Store, member: &Member) -> Result<(), WriteError> {
    match store.create(member.to_object(), author()).await {
        Ok(_) => Ok(()),
        Err(WriteError::Exists(_)) => store
            .update::<WriteError>(&key(&member.id), &Precondition::default(), author(), |object| {
                let mut changed = object.clone();
                member.write_to(&mut changed);
                Ok(changed)
            })
            .await
            .map(drop),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, range: Option<&str>) -> Member {
        Member {
            id: NodeId(id.into()),
            name: format!("node-{id}"),
            address: ([10, 0, 0, 1], 7946).into(),
            pod_cidr: range.map(|range| range.parse().unwrap()),
            voter: true,
        }
    }

    #[test]
    fn members_survive_their_object_form() {
        let member = member("a", Some("10.244.3.0/24"));
        let object = member.to_object();
        assert_eq!(object.key(), Some(key(&member.id)));
        assert_eq!(object.str_at("/spec/podCIDR"), "10.244.3.0/24");
        assert_eq!(Member::from_object(&object), Some(member));
        assert_eq!(Member::from_object(&Object::new(&key(&NodeId("a".into())))), None);
    }
}
