//! What the container runtime needs before the first pod: the pause image under the name that it asks for, and the CNI plugins where
//! it looks for them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use skiff_cri::{Client, Runtime as _, pause};

use super::configuration::Runtime;
use super::containerd;
use crate::files::{directory, link};
use crate::record::Record;
use crate::{Error, Machine};

const PHASE: &str = "runtime";
/// What pods' networks are made with.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// Where containerd looks for plugins, where it does not say.
const PLUGIN_DIR: &str = "opt/cni/bin";

/// Asks the runtime how it is set up.
pub(crate) async fn observe(endpoint: &str) -> Result<Runtime, Error> {
    let client = Client::new(endpoint).with_timeout(std::time::Duration::from_secs(10));
    let settings = client.settings().await.map_err(|source| Error::Runtime {
        endpoint: endpoint.to_owned(),
        source,
    })?;
    Ok(Runtime {
        endpoint: endpoint.to_owned(),
        settings,
    })
}

/// The plugins that have to be linked: those that nobody else has put there.
fn plan<'a>(plugins: &[&'a str], present: impl Fn(&str) -> bool) -> Vec<&'a str> {
    plugins.iter().copied().filter(|plugin| !present(plugin)).collect()
}

/// Puts both into place.
pub(crate) fn apply(machine: &Machine<'_>, runtime: &Runtime, record: &mut Record) -> Result<(), Error> {
    let told = runtime.settings.sandbox_image.clone();
    let image = told.or_else(|| containerd::sandbox_image(machine, &runtime.endpoint));
    let image = image.as_deref().unwrap_or(pause::IMAGE);
    machine.say(PHASE, format!("Using the image {image:?} for pods' sandboxes"));
    write_pause(&machine.layout.images(), image)?;

    let (folder, missing) = missing_plugins(machine, runtime);
    directory(&folder)?;
    if !missing.is_empty() {
        let names = missing.join(", ");
        machine.say(
            PHASE,
            format!("Linking the CNI plugins {names} in {:?}", folder.display().to_string()),
        );
    }
    for plugin in missing {
        let path = folder.join(plugin);
        record.note(&path, &machine.layout)?;
        link(&machine.plugin_program, &path)?;
    }
    Ok(())
}

/// Where the runtime looks for plugins, and those that have to be linked there.
pub(crate) fn missing_plugins(machine: &Machine<'_>, runtime: &Runtime) -> (PathBuf, Vec<&'static str>) {
    let folder = runtime.settings.cni_plugin_dir.clone();
    let folder = folder.unwrap_or_else(|| machine.layout.root().join(PLUGIN_DIR));
    let missing = plan(&PLUGINS, |plugin| is_usable(&folder.join(plugin)));
    (folder, missing)
}

/// A program, or a link to one; a link to nothing is not.
fn is_usable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file())
}

/// The kubelet imports what lies there at each start, so that the image comes back wherever it was removed.
fn write_pause(images: &Path, image: &str) -> Result<(), Error> {
    directory(images)?;
    let path = images.join("pause.tar");
    let draft = images.join(".pause.tar.new");
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source: Box<dyn std::error::Error + Send + Sync>| Error::Image { path, source }
    };
    let file = File::create(&draft).map_err(Error::file("create", &draft))?;
    pause::write_archive_as(image, &file).map_err(|error| failed(&draft)(Box::new(error)))?;
    file.sync_all().map_err(Error::file("write", &draft))?;
    fs::rename(&draft, &path).map_err(Error::file("rename", &draft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_of_others_stay() {
        let missing = plan(&["bridge", "host-local", "loopback"], |plugin| plugin == "loopback");
        assert_eq!(missing, ["bridge", "host-local"]);
    }

    #[test]
    fn a_link_to_nothing_is_no_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bridge");
        link(Path::new("/nonexistent/skiff"), &path).unwrap();
        assert!(!is_usable(&path));
        link(Path::new("/proc/self/exe"), &path).unwrap();
        assert!(is_usable(&path));
    }

    #[test]
    fn the_pause_image_has_the_runtimes_name() {
        let folder = tempfile::tempdir().unwrap();
        write_pause(folder.path(), "registry.k8s.io/pause:3.6").unwrap();
        let text = fs::read(folder.path().join("pause.tar")).unwrap();
        assert!(String::from_utf8_lossy(&text).contains("registry.k8s.io/pause:3.6"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
