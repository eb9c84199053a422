//! The most telling of these tests once more, on the containerds and runcs of later Debians.

use skiff_cri::testing::{FORKY, Later, TRIXIE};

fn run_on(later: Later) {
    later.run(&[
        "a_pod_has_its_cgroup_survives_its_kubelet_and_leaves_nothing",
        "memory_limits_exits_and_messages",
        "a_killed_container_is_seen_at_once",
        "pulls::images_are_pulled_by_tag_and_digest_several_at_once",
    ]);
}

#[test]
fn on_debian_13s() {
    run_on(TRIXIE);
}

#[test]
fn on_the_next_debians() {
    run_on(FORKY);
}
