//! Decides who may look into a program's memory: nobody but the superuser, and no core file.
//! For programs that hold signing keys. Not for programs that a node agent has to recognise by what `/proc` says of them.
//!
//! ```
//! mesh_runtime::memory::keep_private().unwrap();   // first thing in a program that holds keys
//! ```

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Makes the process undumpable, so that no other process of the same user can attach to it or read its memory, and forbids core
/// files.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_private() -> Result<(), Errno> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn after_it_the_process_is_not_dumpable_and_leaves_no_core() {
        keep_private().unwrap();
        assert_eq!(prctl::get_dumpable(), Ok(false));
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
    }
}
