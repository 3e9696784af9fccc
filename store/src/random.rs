//! Random values: the operating system's, or, in a thread that a test or a fuzz target has seeded, those of its seed.

#[cfg(not(any(test, feature = "fuzzing")))]
pub(crate) use rand::random;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use seeded::{random, seed};

#[cfg(any(test, feature = "fuzzing"))]
mod seeded {
    use std::cell::RefCell;

    use rand::distr::{Distribution, StandardUniform};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    thread_local! {
        static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// Makes all that is random in this thread follow from a seed.
    pub(crate) fn seed(seed: u64) {
        SEEDED.set(Some(StdRng::seed_from_u64(seed)));
    }

    pub(crate) fn random<T>() -> T
    where
        StandardUniform: Distribution<T>,
    {
        SEEDED.with_borrow_mut(|seeded| match seeded {
            Some(seeded) => seeded.random(),
            None => rand::random(),
        })
    }
}
