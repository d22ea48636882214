//! The truth: who may be whom. This map lists the crate's modules in reading order.

// surroundings
pub mod store;
