//! A case: one load, the runtimes that carry it, and the ratio that compares them.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

/// Carries the load the given number of times, and returns how long that took.
pub(crate) type Runner = Box<dyn FnMut(u64) -> Duration>;

/// Sets up the load on a tokio runtime.
type Start = Box<dyn Fn(&Arc<Runtime>) -> Runner>;

/// The measurement of one runtime, or of one of two loads on the same runtime.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) start: Start,
}

/// One load and the columns to be measured.
pub(crate) struct Case {
    pub(crate) group: &'static str,
    /// The name within the group, such as `n=16000/burst=1`.
    pub(crate) name: String,
    /// The units of work in one run: deliveries, look-ups, joins.
    pub(crate) per: u64,
    pub(crate) columns: Vec<Column>,
    /// The two columns of the ratio: the first one's time over the second's.
    pub(crate) ratio: (&'static str, &'static str),
    /// Whether the case is part of the quick comparison.
    pub(crate) quick: bool,
}

impl Case {
    /// A case whose ratio is the baseline's time over lanecast's.
    pub(crate) fn new(group: &'static str, name: String, per: u64, quick: bool) -> Self {
        Self { group, name, per, columns: Vec::new(), ratio: ("baseline", "lanecast"), quick }
    }

    /// The name as `perf/compare.sh` prints it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Adds a column. Columns of one name are averaged within a round: where the memory of a session lies makes a
    /// difference of some percent.
    pub(crate) fn column(mut self, name: &'static str, start: impl Fn(&Arc<Runtime>) -> Runner + 'static) -> Self {
        self.columns.push(Column { name, start: Box::new(start) });
        self
    }

    /// The first column of each name.
    pub(crate) fn distinct(&self) -> impl Iterator<Item = &Column> {
        let is_first = |at: usize| self.columns[..at].iter().all(|before| before.name != self.columns[at].name);
        (0..self.columns.len()).filter(move |at| is_first(*at)).map(|at| &self.columns[at])
    }

    /// Compares these two columns with each other, instead of the baseline with lanecast.
    pub(crate) fn own_ratio(mut self, of: &'static str, to: &'static str) -> Self {
        self.ratio = (of, to);
        self
    }
}
