//! The archives that every node of a cluster imports at its start.

use std::fs::{self, File};
use std::path::Path;

use crate::layout::Layout;
use crate::{Error, Result};

/// Puts the pause image and the archives of `given` into the cluster's image directory.
pub(crate) fn collect(layout: &Layout, given: Option<&Path>) -> Result<()> {
    let directory = layout.images();
    fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    let pause = directory.join("pause.tar");
    let file = File::create(&pause).map_err(Error::file("create", &pause))?;
    skiff_cri::pause::write_archive(file).map_err(|error| Error::Image {
        tag: skiff_cri::pause::IMAGE.to_owned(),
        reason: error.to_string(),
    })?;
    let Some(given) = given else { return Ok(()) };
    for entry in fs::read_dir(given).map_err(Error::file("list", given))? {
        let source = entry.map_err(Error::file("list", given))?.path();
        if let Some(name) = source.file_name().filter(|_| source.is_file()) {
            let copy = directory.join(name);
            fs::copy(&source, &copy).map_err(Error::file("copy", &copy))?;
        }
    }
    Ok(())
}
