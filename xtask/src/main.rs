//! Set-up, test beds and checks.
fn main() {}
