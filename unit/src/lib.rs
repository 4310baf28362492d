//! What only tests: a simulated world around the engine, and the oracle that judges every segment in it; scripts that
//! read like a trace; network namespaces for the whole appliance.

pub mod documents;
pub mod fuzzing;
pub mod guest;
pub mod machine;
pub mod netns;
pub mod oracle;
pub mod random;
pub mod script;
pub mod visits;
pub mod world;
