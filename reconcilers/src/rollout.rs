//! How many replicas each ReplicaSet of a Deployment gets: rolling update, recreate, scaling in the middle of either.
//!
//! Numbers alone, after Kubernetes' deployment controller (`pkg/controller/deployment/{rolling,recreate,sync}.go`), with
//! two differences: its steps are repeated here until nothing changes, so that one plan says all that can be done now; and
//! scaling down in the middle of a rollout takes what is not available first, where Kubernetes takes in proportion.

use serde_json::Value;

/// `spec.strategy` with Kubernetes' defaults, in pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    Recreate,
    RollingUpdate { max_surge: u32, max_unavailable: u32 },
}

impl Strategy {
    /// Reads `spec.strategy`. Percentages are of `replicas`, surge rounded up and unavailable down; if both come to
    /// zero, one pod may be unavailable, or nothing would ever move.
    pub fn read(strategy: Option<&Value>, replicas: u32) -> Self {
        let field = |pointer: &str| strategy.and_then(|strategy| strategy.pointer(pointer));
        if field("/type").and_then(Value::as_str) == Some("Recreate") {
            return Strategy::Recreate;
        }
        let max_surge = amount(field("/rollingUpdate/maxSurge"), replicas, u64::div_ceil);
        let max_unavailable = amount(field("/rollingUpdate/maxUnavailable"), replicas, |a, b| a / b);
        Strategy::RollingUpdate {
            max_surge,
            max_unavailable: if max_surge == 0 {
                max_unavailable.max(1)
            } else {
                max_unavailable
            },
        }
    }

    /// Returns how many pods there may be beyond the wanted ones.
    pub fn max_surge(self) -> u32 {
        match self {
            Strategy::Recreate => 0,
            Strategy::RollingUpdate { max_surge, .. } => max_surge,
        }
    }

    /// Returns how many of the wanted pods may be unavailable.
    pub fn max_unavailable(self, replicas: u32) -> u32 {
        match self {
            Strategy::Recreate => 0,
            Strategy::RollingUpdate { max_unavailable, .. } => max_unavailable.min(replicas),
        }
    }
}

/// A number of pods, absolute or in percent; 25 % if it is absent or not readable.
fn amount(value: Option<&Value>, replicas: u32, divide: impl Fn(u64, u64) -> u64) -> u32 {
    let percent = |percent: u64| divide(u64::from(replicas).saturating_mul(percent), 100);
    let amount = match value {
        Some(Value::Number(number)) => number.as_u64().unwrap_or_default(),
        Some(Value::String(text)) => match text.strip_suffix('%').map(str::parse) {
            Some(Ok(number)) => percent(number),
            Some(Err(_)) | None => percent(25),
        },
        _ => percent(25),
    };
    u32::try_from(amount).unwrap_or(u32::MAX)
}

/// A ReplicaSet in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scaled {
    /// `spec.replicas` as it is, then as it is to be.
    pub replicas: u32,
    pub available: u32,
    /// `deployment.kubernetes.io/desired-replicas` and `max-replicas`: what the Deployment wanted when this was last
    /// scaled.
    pub desired: Option<u32>,
    pub max: Option<u32>,
}

impl Scaled {
    fn scale_to(&mut self, replicas: u32) {
        self.replicas = replicas;
        // What is not available goes first.
        self.available = self.available.min(replicas);
    }
}

/// The ReplicaSets of a Deployment in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rollout {
    /// The one of the current template, if there is one.
    pub new: Option<Scaled>,
    /// The others, oldest first.
    pub old: Vec<Scaled>,
}

impl Rollout {
    fn total(&self) -> u32 {
        self.all().map(|set| set.replicas).fold(0, u32::saturating_add)
    }

    fn available(&self) -> u32 {
        self.all().map(|set| set.available).fold(0, u32::saturating_add)
    }

    fn all(&self) -> impl Iterator<Item = &Scaled> {
        self.old.iter().chain(&self.new)
    }

    /// Tells whether the Deployment was scaled since the ReplicaSets were.
    fn was_rescaled(&self, replicas: u32) -> bool {
        self.all()
            .filter(|set| set.replicas > 0)
            .any(|set| set.desired.is_some_and(|desired| desired != replicas))
    }

    /// Follows a change of the Deployment's replicas without rolling on: one active set takes it all, several share more in
    /// proportion, so that a rollout that is stuck does not put all new pods on the bad side.
    pub fn rescale(&mut self, replicas: u32, strategy: Strategy) {
        self.share(replicas, strategy);
        self.note(replicas, strategy);
    }

    fn share(&mut self, replicas: u32, strategy: Strategy) {
        let active = self.all().filter(|set| set.replicas > 0).count();
        if active <= 1 {
            let newest_is_active = self.new.is_some_and(|new| new.replicas > 0) || active == 0;
            let only = match &mut self.new {
                Some(new) if newest_is_active => Some(new),
                _ if active == 0 => self.old.last_mut(),
                _ => self.old.iter_mut().find(|set| set.replicas > 0),
            };
            if let Some(only) = only {
                only.scale_to(replicas);
            }
            return;
        }
        if self
            .new
            .is_some_and(|new| new.replicas == replicas && new.available == replicas)
        {
            for old in &mut self.old {
                old.scale_to(0);
            }
            return;
        }
        let allowed = if replicas == 0 {
            0
        } else {
            replicas.saturating_add(strategy.max_surge())
        };
        let total = self.total();
        match strategy {
            Strategy::Recreate => {}
            Strategy::RollingUpdate { .. } if total > allowed => self.shrink(total - allowed),
            Strategy::RollingUpdate { .. } => self.grow(allowed, total),
        }
    }

    /// Takes away what is not available first, then from the oldest.
    fn shrink(&mut self, mut surplus: u32) {
        for only_unavailable in [true, false] {
            for set in self.old.iter_mut().chain(&mut self.new) {
                let kept = if only_unavailable { set.available } else { 0 };
                let goes = set.replicas.saturating_sub(kept).min(surplus);
                surplus -= goes;
                set.scale_to(set.replicas - goes);
            }
        }
    }

    /// Shares out more replicas in proportion to the sizes; the largest set, of equal ones the newest, takes the rest.
    fn grow(&mut self, allowed: u32, total: u32) {
        let to_add = allowed - total;
        let mut sets: Vec<&mut Scaled> = self
            .old
            .iter_mut()
            .chain(&mut self.new)
            .filter(|set| set.replicas > 0)
            .rev()
            .collect();
        sets.sort_by_key(|set| std::cmp::Reverse(set.replicas));
        let mut rest = to_add;
        for set in &mut sets {
            let before = u64::from(set.max.filter(|max| *max > 0).unwrap_or(total)).max(1);
            let size = (2 * u64::from(set.replicas) * u64::from(allowed) + before) / (2 * before);
            let share = u32::try_from(size)
                .unwrap_or(u32::MAX)
                .saturating_sub(set.replicas)
                .min(rest);
            rest -= share;
            set.scale_to(set.replicas + share);
        }
        if let Some(largest) = sets.first_mut() {
            largest.scale_to(largest.replicas + rest);
        }
    }

    /// Goes as far as the bounds allow now. `old_pods_run` tells whether pods of an older template may still run (which
    /// Recreate waits for).
    pub fn roll(&mut self, replicas: u32, strategy: Strategy, old_pods_run: bool) {
        if self.was_rescaled(replicas) {
            self.rescale(replicas, strategy);
        }
        match strategy {
            Strategy::Recreate => {
                for old in &mut self.old {
                    old.scale_to(0);
                }
                if let Some(new) = self.new.as_mut().filter(|_| !old_pods_run) {
                    new.scale_to(replicas);
                }
            }
            Strategy::RollingUpdate {
                max_surge,
                max_unavailable,
            } => {
                let minimum = replicas.saturating_sub(max_unavailable);
                // Ends: after the first round the new set only grows and the old ones only shrink.
                while self.grow_new(replicas, max_surge) | self.shrink_old(minimum) {}
            }
        }
        self.note(replicas, strategy);
    }

    /// Takes note of what the Deployment wanted, for the next [`Rollout::was_rescaled`].
    fn note(&mut self, replicas: u32, strategy: Strategy) {
        for set in self
            .old
            .iter_mut()
            .filter(|set| set.replicas > 0)
            .chain(&mut self.new)
        {
            set.desired = Some(replicas);
            set.max = Some(replicas.saturating_add(strategy.max_surge()));
        }
    }

    fn grow_new(&mut self, replicas: u32, max_surge: u32) -> bool {
        let room = replicas.saturating_add(max_surge).saturating_sub(self.total());
        let Some(new) = &mut self.new else {
            return false;
        };
        let target = if new.replicas >= replicas {
            replicas
        } else {
            new.replicas + room.min(replicas - new.replicas)
        };
        let changes = target != new.replicas;
        new.scale_to(target);
        changes
    }

    fn shrink_old(&mut self, minimum: u32) -> bool {
        let Some(new) = self.new else {
            return false;
        };
        let new_unavailable = new.replicas.saturating_sub(new.available);
        let spare = self
            .total()
            .saturating_sub(minimum)
            .saturating_sub(new_unavailable);
        let mut unhealthy_budget = spare;
        for old in &mut self.old {
            let unhealthy = old.replicas.saturating_sub(old.available).min(unhealthy_budget);
            unhealthy_budget -= unhealthy;
            old.scale_to(old.replicas - unhealthy);
        }
        let mut budget = self.available().saturating_sub(minimum).min(unhealthy_budget);
        let unhealthy_went = unhealthy_budget != spare;
        let healthy_go = budget > 0 && self.old.iter().any(|old| old.replicas > 0);
        for old in &mut self.old {
            let goes = old.replicas.min(budget);
            budget -= goes;
            old.scale_to(old.replicas - goes);
        }
        unhealthy_went || healthy_go
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, prop, prop_assert, prop_assert_eq, prop_compose, proptest};
    use serde_json::json;

    use super::*;

    fn set(replicas: u32, available: u32) -> Scaled {
        Scaled {
            replicas,
            available,
            ..Scaled::default()
        }
    }

    fn scaled(replicas: u32, available: u32, desired: u32, max: u32) -> Scaled {
        Scaled {
            desired: Some(desired),
            max: Some(max),
            ..set(replicas, available)
        }
    }

    fn rolling(max_surge: u32, max_unavailable: u32) -> Strategy {
        Strategy::RollingUpdate {
            max_surge,
            max_unavailable,
        }
    }

    #[test]
    fn bounds_are_read_and_rounded_as_kubernetes_does() {
        for (strategy, replicas, expected) in [
            (json!(null), 10, rolling(3, 2)),
            (json!({}), 3, rolling(1, 0)),
            (
                json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
                3,
                rolling(0, 1),
            ),
            (
                json!({"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "10%"}}),
                3,
                rolling(0, 1),
            ),
            (
                json!({"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": "50%"}}),
                5,
                rolling(3, 2),
            ),
            (
                json!({"rollingUpdate": {"maxSurge": 5, "maxUnavailable": 7}}),
                3,
                rolling(5, 7),
            ),
            (json!({"type": "Recreate"}), 3, Strategy::Recreate),
        ] {
            assert_eq!(Strategy::read(Some(&strategy), replicas), expected, "{strategy}");
        }
    }

    fn check(strategy: Strategy, replicas: u32, before: (Scaled, &[Scaled]), expected: (u32, &[u32])) {
        let mut rollout = Rollout {
            new: Some(before.0),
            old: before.1.to_vec(),
        };
        rollout.roll(replicas, strategy, false);
        let old: Vec<u32> = rollout.old.iter().map(|set| set.replicas).collect();
        assert_eq!(
            (rollout.new.unwrap().replicas, old.as_slice()),
            expected,
            "{strategy:?} to {replicas} from {before:?}"
        );
    }

    #[test]
    fn rolling_updates_go_as_far_as_the_bounds_allow() {
        check(rolling(3, 2), 10, (set(0, 0), &[]), (10, &[]));
        check(rolling(3, 2), 10, (set(0, 0), &[set(10, 10)]), (5, &[8]));
        check(rolling(3, 2), 10, (set(5, 0), &[set(8, 8)]), (5, &[8]));
        check(rolling(3, 2), 10, (set(5, 5), &[set(8, 8)]), (10, &[3]));
        check(rolling(3, 2), 10, (set(10, 10), &[set(3, 3)]), (10, &[0]));
        check(rolling(1, 0), 3, (set(0, 0), &[set(3, 3)]), (1, &[3]));
        check(rolling(1, 0), 3, (set(1, 1), &[set(3, 3)]), (2, &[2]));
        // Unhealthy old pods go first, the oldest set first.
        check(
            rolling(1, 0),
            3,
            (set(1, 1), &[set(1, 0), set(2, 2)]),
            (2, &[0, 2]),
        );
        // A stuck rollout stays where it is.
        check(rolling(1, 1), 4, (set(2, 0), &[set(3, 3)]), (2, &[3]));
    }

    #[test]
    fn recreate_waits_for_the_old_pods() {
        let mut rollout = Rollout {
            new: Some(set(0, 0)),
            old: vec![set(3, 3)],
        };
        rollout.roll(3, Strategy::Recreate, true);
        assert_eq!(
            (rollout.new.map(|new| new.replicas), rollout.old[0].replicas),
            (Some(0), 0)
        );
        rollout.roll(3, Strategy::Recreate, false);
        assert_eq!(rollout.new.map(|new| new.replicas), Some(3));
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_shared() {
        // Kubernetes' own example: 10 replicas, surge 3, unavailable 2, stuck at 8 + 5, scaled to 15.
        let mut rollout = Rollout {
            new: Some(scaled(5, 0, 10, 13)),
            old: vec![scaled(8, 8, 10, 13)],
        };
        rollout.rescale(15, rolling(3, 2));
        assert_eq!((rollout.new.unwrap().replicas, rollout.old[0].replicas), (7, 11));
        rollout.rescale(0, rolling(3, 2));
        assert_eq!((rollout.new.unwrap().replicas, rollout.old[0].replicas), (0, 0));
    }

    prop_compose! {
        fn any_set(most: u32)(replicas in 0..=most)(available in 0..=replicas, replicas in Just(replicas)) -> Scaled {
            set(replicas, available)
        }
    }

    proptest! {
        #[test]
        fn bounds_hold_and_a_second_roll_changes_nothing(
            replicas in 0_u32..30,
            surge in 0_u32..10,
            unavailable in 0_u32..10,
            new in any_set(30),
            old in prop::collection::vec(any_set(15), 0..4),
        ) {
            let strategy = rolling(surge, if surge == 0 { unavailable.max(1) } else { unavailable });
            let before = Rollout { new: Some(new), old };
            let mut after = before.clone();
            after.roll(replicas, strategy, false);
            prop_assert!(after.total() <= before.total().max(replicas + surge), "{after:?}");
            let minimum = replicas.saturating_sub(strategy.max_unavailable(replicas));
            let scaled_down = new.available.saturating_sub(replicas);
            prop_assert!(after.available() + scaled_down >= before.available().min(minimum), "{after:?}");
            let mut again = after.clone();
            again.roll(replicas, strategy, false);
            prop_assert_eq!(again, after);
        }

        #[test]
        fn a_rollout_of_healthy_pods_completes(
            replicas in 0_u32..30,
            surge in 0_u32..10,
            unavailable in 0_u32..10,
            old in prop::collection::vec(any_set(15), 0..4),
        ) {
            let strategy = rolling(surge, if surge == 0 { unavailable.max(1) } else { unavailable });
            let mut rollout = Rollout { new: Some(set(0, 0)), old };
            for _ in 0..100 {
                rollout.roll(replicas, strategy, false);
                for set in rollout.old.iter_mut().chain(&mut rollout.new) {
                    set.available = set.replicas;
                }
            }
            prop_assert_eq!(rollout.new.map(|new| new.replicas), Some(replicas));
            prop_assert_eq!(rollout.total(), replicas);
        }
    }
}
