//! The tools without a network: loads over ports in memory, and the screens of `synctl top`, drawn into memory.

mod loads;
mod top;
