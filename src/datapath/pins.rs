//! The directories on the bpffs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{DatapathError, Sizes};

/// Hash of the sources that define the maps and what their values mean; see `build.rs`.
pub const ABI: &str = env!("ONCACHE_ABI");

/// Directory of the links.
#[must_use]
pub fn links(root: &Path) -> PathBuf {
    root.join("links")
}

/// Directory of the maps of this build's layout and of `sizes`. aya takes a pinned map as it is,
/// so the name carries all that makes two maps different.
#[must_use]
pub fn maps(root: &Path, sizes: Sizes) -> PathBuf {
    root.join("maps").join(format!("{ABI}-{}", sizes.flows))
}

/// Makes a directory on the bpffs.
pub(super) fn create(directory: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(directory).map_err(|source| DatapathError::Pin {
        action: "create directory",
        path: directory.to_owned(),
        source,
    })
}

/// Names in a directory of pins; none where it does not exist.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, DatapathError> {
    let failed = |source| DatapathError::Pin {
        action: "list directory",
        path: directory.to_owned(),
        source,
    };
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| {
                Ok(entry
                    .map_err(failed)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned())
            })
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes one pin; no error where it is gone already.
pub(super) fn remove(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pin {
            action: "remove pin",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Removes a directory of pins with all in it; no error where it is gone already.
pub(super) fn remove_tree(directory: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pin {
            action: "remove directory",
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Names of the map directories of other layouts or sizes than `kept`.
///
/// # Errors
///
/// [`DatapathError::Pin`] if the bpffs can't be read.
pub fn other_maps(root: &Path, kept: &Path) -> Result<Vec<String>, DatapathError> {
    let maps = root.join("maps");
    let mut others = names(&maps)?;
    others.retain(|name| maps.join(name) != kept);
    Ok(others)
}

/// Removes the map directories of other layouts or sizes than `kept`. To be called once no program
/// of theirs is attached.
///
/// # Errors
///
/// [`DatapathError::Pin`] if the bpffs can't be read or written.
pub fn remove_other_maps(root: &Path, kept: &Path) -> Result<Vec<String>, DatapathError> {
    let others = other_maps(root, kept)?;
    for name in &others {
        remove_tree(&root.join("maps").join(name))?;
    }
    Ok(others)
}

/// Removes every pin below `root`: maps, and with their last reference the links.
///
/// # Errors
///
/// [`DatapathError::Pin`] if the bpffs can't be written.
pub fn remove_all(root: &Path) -> Result<(), DatapathError> {
    remove_tree(root)
}
