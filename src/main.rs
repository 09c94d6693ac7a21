//! The `ringpost` binary: the allocator, and a call into the library.
//!
//! Owns: nothing else. Promises: what the program does is in the library, where tests reach it. Must
//! not: grow.

// The workers allocate and free small things of many sizes, often on different threads; mimalloc
// keeps both cheap and gives memory back. It is built without huge pages: with them a page that holds one
// small thing keeps two megabytes resident, and each that is given back is cleared whole when it is used again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ringpost::cli::main()
}
