//! Finds a node for each unscheduled pod: queue, filter plugins, score plugins, bind.
