//! The engine driven directly, without a kernel or a clock: scripts that read like a trace, the simulated world, every state against every
//! segment, and what fuzzing has found.

mod abuse;
mod accecn;
mod asymmetric;
mod corpora;
mod crossing;
mod dependencies;
mod documents;
mod errors;
mod field;
mod full_table;
mod hostile;
mod listed;
mod matrix;
mod modes;
mod operator;
mod passing;
mod promise;
mod proved;
mod refusal;
mod replay;
mod reports;
mod row;
mod scenarios;
mod several;
mod simulation;
mod states;
mod traps;
mod who;
