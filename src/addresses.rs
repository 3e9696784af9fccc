//! How many connections each address has, lest one client, or many, shut the others out of a listener.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of a listener, or those in one state, counted by address.
pub(crate) struct Addresses {
    /// At once from one address.
    per_address: usize,
    /// At once from all.
    total: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    by_address: HashMap<IpAddr, usize>,
    total: usize,
}

/// One connection's place among those of its address; dropping it makes room.
pub(crate) struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(per_address: usize, total: usize) -> Arc<Self> {
        Arc::new(Self {
            per_address,
            total,
            counts: Mutex::default(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: the address, or all together, have what they may have.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut counts = self.counts();
        let of_address = counts.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.per_address || counts.total >= self.total {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, of_address + 1);
        Some(Place {
            addresses: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts();
        counts.total -= 1;
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn one_address_gets_its_share_and_no_more() {
        let addresses = Addresses::new(3, 100);
        let mut places: Vec<Place> = std::iter::from_fn(|| addresses.enter(far(7))).collect();
        assert_eq!(places.len(), 3);
        let mapped = "::ffff:192.0.2.7".parse().unwrap();
        assert!(addresses.enter(mapped).is_none(), "the same address in IPv6");
        assert!(addresses.enter(far(8)).is_some());
        places.pop();
        assert!(addresses.enter(far(7)).is_some(), "an end makes room");
        drop(places);
        assert!(addresses.counts().by_address.is_empty());
    }

    #[test]
    fn all_together_have_a_limit() {
        let addresses = Addresses::new(3, 5);
        let places: Vec<Place> = (0..9).filter_map(|last| addresses.enter(far(last))).collect();
        assert_eq!(places.len(), 5);
        drop(places);
        assert!(addresses.enter(far(1)).is_some());
    }
}
