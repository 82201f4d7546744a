//! argv to command; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    oncache::cli::main()
}
