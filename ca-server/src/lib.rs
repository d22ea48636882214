//! The truth: who may be whom. This map lists the crate's modules in reading order.

// deciding
pub mod authority;

// surroundings
pub mod store;
