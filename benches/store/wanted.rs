//! Which sections of a benchmark are to run: all, unless `BENCH` names some.

/// The sections that were asked for.
pub(crate) struct Wanted(Vec<String>);

impl Wanted {
    /// Reads `BENCH`; fails the run if it names a section that is none of `all`.
    pub(crate) fn from_environment(all: &[&str]) -> Self {
        let named = std::env::var("BENCH").unwrap_or_default();
        let named: Vec<String> = named
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        let unknown: Vec<_> = named
            .iter()
            .filter(|name| !all.contains(&name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "BENCH={unknown:?}: not a section of {all:?}");
        if named.is_empty() {
            return Self(all.iter().map(|name| (*name).to_owned()).collect());
        }
        Self(named)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|wanted| wanted == name)
    }

    pub(crate) fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.has(name))
    }
}
