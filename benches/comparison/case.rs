//! A case: one load, the runtimes that carry it, and how they are compared.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

/// Carries the load so many times and says how long it took.
pub(crate) type Runner = Box<dyn FnMut(u64) -> Duration>;

/// Sets the load up on a tokio runtime.
type Start = Box<dyn Fn(&Arc<Runtime>) -> Runner>;

/// What is measured of one runtime (or of one of two loads of the same).
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) start: Start,
}

/// See the [module](self).
pub(crate) struct Case {
    pub(crate) group: &'static str,
    /// What tells it from others of its group: `n=16000/burst=1`.
    pub(crate) name: String,
    /// What one run is counted as: deliveries, look-ups, joins.
    pub(crate) per: u64,
    pub(crate) columns: Vec<Column>,
    /// The ratio is the first one's time over the second's.
    pub(crate) ratio: (&'static str, &'static str),
    /// Part of the quick comparison.
    pub(crate) quick: bool,
}

impl Case {
    /// A case that is won by how many times less time than the baseline is needed.
    pub(crate) fn new(group: &'static str, name: String, per: u64, quick: bool) -> Self {
        Self { group, name, per, columns: Vec::new(), ratio: ("baseline", "lanecast"), quick }
    }

    /// As `perf/compare.sh` prints it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    pub(crate) fn column(mut self, name: &'static str, start: impl Fn(&Arc<Runtime>) -> Runner + 'static) -> Self {
        self.columns.push(Column { name, start: Box::new(start) });
        self
    }

    /// Compares two columns with each other instead of the runtimes.
    pub(crate) fn own_ratio(mut self, of: &'static str, to: &'static str) -> Self {
        self.ratio = (of, to);
        self
    }
}

/// All cases, in the order of the groups.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = crate::fanout::cases();
    cases.extend(crate::topics::cases());
    cases.extend(crate::direct::cases());
    cases.extend(crate::membership::cases());
    cases.extend(crate::resets::cases());
    cases.extend(crate::latency::cases());
    cases
}
