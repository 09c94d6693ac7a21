//! The log against a fake disk: crashes, torn writes, failed writes, restarts.
//!
//! Owns: the checkers of what the spool promises. Promises: every random history is a function of its
//! seed, which a failure prints. Must not: use anything of the log's insides to decide what is right.
mod canary;
mod corruption;
mod crash;
mod disk;
mod exhaustive;
mod failure;
mod largest;
mod operator;
mod random;
mod steady;
mod unreadable;
mod world;
