//! Pages of the user's guide, typed where everything is where they say it is.

use crate::cluster::{Cluster, LIMIT};
use crate::wait::until;

pub(crate) fn typed(cluster: &mut Cluster) -> anyhow::Result<()> {
    let seen = cluster.follow("troubleshooting.md", "look")?;
    for wanted in ["0 loaded units listed", "skiff[", "Roles:", "LAST SEEN"] {
        anyhow::ensure!(seen.contains(wanted), "no {wanted:?} in what is looked at:\n{seen}");
    }

    cluster.kubectl("create configmap before")?;
    cluster.follow("backup.md", "save")?;
    let modes = cluster
        .master()
        .run("stat --format %a /var/backups/skiff /var/backups/skiff-keys.tar.gz")?;
    anyhow::ensure!(modes == "600\n600", "everybody can read a backup: {modes}");
    cluster.kubectl("create configmap undone")?;
    cluster.follow("backup.md", "come back")?;
    let restored = |names: &String| names.contains("/before") && !names.contains("/undone");
    let look = || cluster.kubectl("get configmaps --output name");
    until("the state of the backup", LIMIT, look, restored)?;
    cluster.kubectl("delete configmap before")?;
    cluster.wait_until_ready()?;
    cluster
        .master()
        .run("rm /var/backups/skiff /var/backups/skiff-keys.tar.gz")
        .map(drop)
}
