//! Two measurements and the time between them: usage is what was used over a time, and nothing is measured unless somebody asks.
//!
//! The newest measurement is remembered, so that who asks again is told of the time since, without a wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// The kernel counts a machine's time in hundredths of a second: over one, 1 % of a core shows.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// What was used longer ago says little of now; metrics-server asks every 15 s, and users may choose up to a minute.
const LONGEST: Duration = Duration::from_secs(60);

/// The last two measurements of something.
pub(super) struct Sampler<T>(Mutex<Option<Arc<Window<T>>>>);

/// Two measurements.
pub(super) struct Window<T> {
    pub(super) earlier: T,
    pub(super) later: T,
    /// From the one to the other.
    pub(super) length: Duration,
    end: Instant,
}

impl<T> Default for Sampler<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Sampler<T> {
    /// Measures, twice if nothing from the last minute is remembered; once a second at most, however many ask.
    /// Cancel safe: what a dropped call measured is measured again.
    ///
    /// # Errors
    /// Those of `measure`.
    pub(super) async fn window<F, E>(&self, measure: impl Fn() -> F) -> Result<Arc<Window<T>>, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut last = self.0.lock().await;
        if let Some(window) = last.as_ref()
            && window.end.elapsed() < SHORTEST
        {
            return Ok(window.clone());
        }
        // Kept until there is a newer one: a slow measurement may be given up by who waits for it.
        let (earlier, begin) = match last.as_ref() {
            Some(window) if window.end.elapsed() <= LONGEST => (window.later.clone(), window.end),
            _ => {
                let earlier = measure().await?;
                let begin = Instant::now();
                sleep(SHORTEST).await;
                (earlier, begin)
            }
        };
        let later = measure().await?;
        let end = Instant::now();
        let length = end.duration_since(begin);
        let window = Window {
            earlier,
            later,
            length,
            end,
        };
        Ok(last.insert(Arc::new(window)).clone())
    }
}

#[cfg(test)]
impl<T> Window<T> {
    pub(super) fn of(earlier: T, later: T, length: Duration) -> Self {
        Self {
            earlier,
            later,
            length,
            end: Instant::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_window_is_a_second_at_least_and_begins_where_the_last_one_ended() {
        let (sampler, measured) = (Sampler::default(), AtomicU32::new(0));
        let ask = async || {
            let measure = async || Ok::<_, Infallible>(measured.fetch_add(1, Ordering::Relaxed));
            let window = sampler.window(measure).await.unwrap();
            (window.earlier, window.later, window.length.as_secs())
        };
        for (pause_seconds, expected) in [
            (0, (0, 1, 1)),
            (0, (0, 1, 1)),
            (15, (1, 2, 15)),
            (60, (2, 3, 60)),
            (61, (4, 5, 1)),
        ] {
            sleep(Duration::from_secs(pause_seconds)).await;
            assert_eq!(ask().await, expected, "{pause_seconds} s later");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_at_once_share_one_window() {
        let (sampler, measured) = (Sampler::default(), AtomicU32::new(0));
        let measure = async || Ok::<_, Infallible>(measured.fetch_add(1, Ordering::Relaxed));
        let (one, other) = tokio::join!(sampler.window(measure), sampler.window(measure));
        assert!(Arc::ptr_eq(&one.unwrap(), &other.unwrap()));
        assert_eq!(measured.into_inner(), 2);
    }
}
