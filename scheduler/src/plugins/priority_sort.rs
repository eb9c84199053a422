//! PrioritySort: pods of higher priority go first.

use crate::framework::{Plugin, QueueSort};
use crate::model::Pod;

/// Sorts by priority.
#[derive(Debug)]
pub(crate) struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }
}

impl QueueSort for PrioritySort {
    fn rank(&self, pod: &Pod) -> i64 {
        -i64::from(pod.priority)
    }
}
