//! Files with what a workload shows to a server of the control plane.

use std::path::{Path, PathBuf};

const NAMESPACE: &str = "{namespace}";
const SERVICE_ACCOUNT: &str = "{service_account}";

/// Whether each account has a file of its own: its name has `{namespace}` or `{service_account}`
/// in it.
pub(crate) fn is_of_accounts(file: &Path) -> bool {
    let name = file.to_string_lossy();
    name.contains(NAMESPACE) || name.contains(SERVICE_ACCOUNT)
}

/// The file of an account.
pub(crate) fn of_account(file: &Path, namespace: &str, service_account: &str) -> PathBuf {
    let name = file.to_string_lossy();
    name.replace(NAMESPACE, namespace)
        .replace(SERVICE_ACCOUNT, service_account)
        .into()
}
