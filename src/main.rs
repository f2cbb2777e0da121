//! The program: the library's command line, on a heap that forgets what is freed.

#[global_allocator]
static HEAP: ferryd::net::secrecy::ForgetfulHeap = ferryd::net::secrecy::ForgetfulHeap;

fn main() -> std::process::ExitCode {
    ferryd::cli::run()
}
