//! The program: arguments in, exit code out.
//! Trusts the library for everything else; never does anything before the TLS provider is installed.

fn main() -> mesh_runtime::cli::Exit {
    mesh_tls::install_default_provider();
    workload_agent::cli::main()
}
