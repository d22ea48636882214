//! The `ca-server` program: arguments → configuration → log → App → wait for a signal.

use mesh_runtime::cli::Exit;

fn main() -> Exit {
    // kube takes the process default, so this comes before everything.
    mesh_tls::install_default_provider();
    ca_server::cli::main(ca_server::cli::Cli::of_process())
}
