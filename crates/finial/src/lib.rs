//! The people's tool. `cli` is the grammar; `dev` runs the whole system on one machine; `policy` asks policy files.

pub mod cli;
pub mod dev;
pub mod policy;
