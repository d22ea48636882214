//! The people's tool. `cli` is the grammar; `dev` runs the whole system on one machine.

pub mod cli;
pub mod dev;
