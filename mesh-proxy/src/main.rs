//! The program: hands the command line to the library and the exit code to the shell.
//! Decides nothing, trusts nothing, never does anything else.

use mesh_runtime::cli::Exit;

fn main() -> Exit {
    mesh_proxy::cli::main()
}
