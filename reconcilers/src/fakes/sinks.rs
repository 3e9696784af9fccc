//! Sinks of zones and routes that remember the last value.

use std::sync::Mutex;

use super::lock;
use crate::ports::{DnsWhitelist, RouteSink, RouteTable, Zone, ZoneSink};

/// Remembers the zone and the whitelist.
#[derive(Debug, Default)]
pub struct FakeZone {
    zone: Mutex<Zone>,
    whitelist: Mutex<DnsWhitelist>,
}

impl FakeZone {
    pub fn zone(&self) -> Zone {
        lock(&self.zone).clone()
    }

    pub fn whitelist(&self) -> DnsWhitelist {
        lock(&self.whitelist).clone()
    }
}

impl ZoneSink for FakeZone {
    fn set_zone(&self, zone: Zone) {
        *lock(&self.zone) = zone;
    }

    fn set_whitelist(&self, whitelist: DnsWhitelist) {
        *lock(&self.whitelist) = whitelist;
    }
}

/// Remembers the route table.
#[derive(Debug, Default)]
pub struct FakeRoutes {
    routes: Mutex<RouteTable>,
}

impl FakeRoutes {
    pub fn routes(&self) -> RouteTable {
        lock(&self.routes).clone()
    }
}

impl RouteSink for FakeRoutes {
    fn set_routes(&self, routes: RouteTable) {
        *lock(&self.routes) = routes;
    }
}
