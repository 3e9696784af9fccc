//! Which part of the cluster's pod range belongs to which node.
//!
//! Claims are desired state (`spec.podCIDR` of Member documents). Two nodes may claim the same while they cannot talk: the
//! lower id keeps it, the other claims anew. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use schemas::Object;
use store::NodeId;

/// A node's range holds 254 pods, more than a host of this cluster's size runs.
const NODE_PREFIX_V4: u8 = 24;
/// Customary for one link.
const NODE_PREFIX_V6: u8 = 64;
/// Ranges looked at before giving up: far more than the 50 nodes of a cluster.
const RANGES_TRIED: usize = 4096;

/// What this node is to do about its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// It has this one, and keeps it.
    Keep(IpNet),
    /// It has none, or lost it: claim this one.
    Take(IpNet),
    /// Every range is taken.
    NoneLeft,
    /// It is not admitted (yet).
    NotMember,
}

/// Decides on the range of `me`.
pub fn claim(me: &NodeId, members: &[&Object], cluster: IpNet) -> Claim {
    let Some(mine) = members.iter().find(|member| member.name() == me.0) else {
        return Claim::NotMember;
    };
    let others: Vec<(&str, IpNet)> = members
        .iter()
        .filter(|member| member.name() != me.0)
        .filter_map(|member| Some((member.name(), range(member)?)))
        .collect();
    let lost = |mine: IpNet| {
        others
            .iter()
            .any(|(id, other)| *id < me.0.as_str() && overlap(mine, *other))
    };
    if let Some(mine) = range(mine).filter(|mine| cluster.contains(mine) && !lost(*mine)) {
        return Claim::Keep(mine);
    }
    let taken: Vec<IpNet> = others.iter().map(|(_, other)| *other).collect();
    first_free(cluster, &taken).map_or(Claim::NoneLeft, Claim::Take)
}

/// Returns the first node's range of the cluster's that overlaps none of `taken`.
pub fn first_free(cluster: IpNet, taken: &[IpNet]) -> Option<IpNet> {
    ranges(cluster)
        .take(RANGES_TRIED)
        .find(|range| !taken.iter().any(|other| overlap(*range, *other)))
}

/// Returns the ranges of the other members and the addresses that lead to them; of two that overlap, the lower id's.
pub fn routes(me: &NodeId, members: &[&Object]) -> BTreeMap<IpNet, IpAddr> {
    let mut claims: Vec<(&str, IpNet, Option<IpAddr>)> = members
        .iter()
        .filter_map(|member| {
            Some((
                member.name(),
                range(member)?,
                member.str_at("/spec/address").parse().ok(),
            ))
        })
        .collect();
    claims.sort_by_key(|(id, _, _)| *id);
    let mut taken: Vec<IpNet> = Vec::new();
    let mut routes = BTreeMap::new();
    for (id, range, address) in claims {
        if taken.iter().any(|other| overlap(*other, range)) {
            continue;
        }
        taken.push(range);
        if let Some(address) = address.filter(|_| id != me.0) {
            routes.insert(range, address);
        }
    }
    routes
}

fn range(member: &Object) -> Option<IpNet> {
    member.str_at("/spec/podCIDR").parse().ok()
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn ranges(cluster: IpNet) -> Box<dyn Iterator<Item = IpNet>> {
    match cluster {
        IpNet::V4(net) => {
            let subnets = net.subnets(NODE_PREFIX_V4.max(net.prefix_len()));
            Box::new(subnets.into_iter().flatten().map(IpNet::V4))
        }
        IpNet::V6(net) => {
            let subnets = net.subnets(NODE_PREFIX_V6.max(net.prefix_len()));
            Box::new(subnets.into_iter().flatten().map(IpNet::V6))
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Kind, ObjectKey};
    use serde_json::json;

    use super::*;

    fn check(members: &[(&str, &str)], expected: Claim) {
        let members: Vec<Object> = members
            .iter()
            .map(|(id, range)| {
                let mut member = Object::new(&ObjectKey::cluster(Kind::Member, *id));
                member.set(&["spec"], json!({"podCIDR": range, "address": "10.0.0.1"}));
                member
            })
            .collect();
        let refs: Vec<&Object> = members.iter().collect();
        let cluster = "10.244.0.0/22".parse().unwrap();
        assert_eq!(
            claim(&NodeId("me".into()), &refs, cluster),
            expected,
            "{members:?}"
        );
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lower_id_keeps_a_range_and_the_other_takes_the_first_free_one() {
        check(&[("a", "10.244.0.0/24")], Claim::NotMember);
        check(&[("me", "")], Claim::Take(net("10.244.0.0/24")));
        check(
            &[("me", "10.244.3.0/24"), ("z", "10.244.3.0/24")],
            Claim::Keep(net("10.244.3.0/24")),
        );
        check(
            &[("a", "10.244.0.0/24"), ("me", "10.244.0.0/24")],
            Claim::Take(net("10.244.1.0/24")),
        );
        check(&[("me", "192.168.0.0/24")], Claim::Take(net("10.244.0.0/24")));
        let full = [
            ("a", "10.244.0.0/24"),
            ("b", "10.244.1.0/24"),
            ("c", "10.244.2.0/23"),
            ("me", "10.244.1.0/24"),
        ];
        check(&full, Claim::NoneLeft);
    }

    #[test]
    fn routes_lead_to_the_winner_of_a_conflict() {
        let member = |id: &str, range: &str, address: &str| {
            let mut member = Object::new(&ObjectKey::cluster(Kind::Member, id));
            member.set(&["spec"], json!({"podCIDR": range, "address": address}));
            member
        };
        let members = [
            member("b", "10.244.1.0/24", "10.0.0.2"),
            member("a", "10.244.1.0/24", "10.0.0.1"),
            member("me", "10.244.2.0/24", "10.0.0.9"),
        ];
        let refs: Vec<&Object> = members.iter().collect();
        let routes = routes(&NodeId("me".into()), &refs);
        assert_eq!(
            routes,
            BTreeMap::from([(net("10.244.1.0/24"), "10.0.0.1".parse().unwrap())])
        );
    }
}
