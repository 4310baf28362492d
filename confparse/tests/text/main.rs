//! Configuration texts: what they mean, and what is complained of.

mod any_text;
mod complaints;
mod conf;
mod corpus;
mod effects;
