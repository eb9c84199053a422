//! The most telling of these tests once more, on the containerds and runcs of later Debians.

use skiff_cri::testing::{FORKY, Later, TRIXIE};

fn run_on(later: Later) {
    later.run(&[
        "a_pod_has_its_cgroup_survives_its_kubelet_and_leaves_nothing",
        "memory_limits_exits_and_messages",
        "a_killed_container_is_seen_at_once",
        "pulls::images_are_pulled_by_tag_and_digest_several_at_once",
        "volumes::mounts_are_read_only_all_the_way_down_where_the_runtime_can",
        "volumes::images_are_volumes_where_the_runtime_can",
        "volumes::a_volume_that_is_mounted_read_only_is_so_in_its_containers",
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
