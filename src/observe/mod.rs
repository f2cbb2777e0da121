//! What operators see: logs.

pub mod logs;
