//! Output files: written under a temporary name and renamed, so that an interrupted run leaves none half done.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use anyhow::Context;

use crate::interrupt::Interrupt;

/// Writes `dir/name`, creating the directory where it is missing.
pub(crate) fn write_atomically(dir: &Path, name: impl AsRef<OsStr>, bytes: &[u8]) -> anyhow::Result<()> {
    // The temporary file has to go, whatever happens.
    let _undisturbed = Interrupt::watch();
    std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot be created", dir.display()))?;
    let path = dir.join(name.as_ref());
    let at = || format!("{}: cannot be written", path.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tympan-");
    // Temporary files are private by default; results are as readable as the user's other files.
    #[cfg(unix)]
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(mode);
    let mut file = builder.tempfile_in(dir).with_context(at)?;
    file.write_all(bytes).with_context(at)?;
    file.persist(&path).map_err(|e| e.error).with_context(at)?;
    Ok(())
}
