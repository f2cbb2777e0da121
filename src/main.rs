fn main() -> std::process::ExitCode {
    ferryd::cli::run()
}
