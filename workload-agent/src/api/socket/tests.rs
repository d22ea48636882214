//! Places where a socket must not be made, and the one where it must be taken over.

use std::os::unix::{fs::symlink, net::UnixStream};

use super::*;

fn directory(mode: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    dir
}

fn refusal(path: &Path) -> String {
    let error = BoundSocket::bind(path, 0o777).unwrap_err();
    assert_eq!(
        error.code(),
        SocketError::Unsafe {
            path: path.into(),
            why: String::new()
        }
        .code(),
        "{error}"
    );
    error.to_string()
}

#[tokio::test]
async fn the_socket_is_open_to_all_in_a_directory_that_is_made_and_closed() {
    let dir = directory(0o755);
    let path = dir.path().join("made/here/api.sock");
    let socket = BoundSocket::bind(&path, 0o777).unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o777);
    assert_eq!(
        fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o022,
        0
    );
    UnixStream::connect(&path).unwrap();
    drop(socket);
    assert!(!path.exists(), "removed at the end");
}

#[tokio::test]
async fn ag_10_a_directory_that_others_can_write_is_refused() {
    for mode in [0o777, 0o775, 0o757, 0o1777] {
        let dir = directory(mode);
        assert!(
            refusal(&dir.path().join("api.sock")).contains("can be written by others"),
            "{mode:o}"
        );
    }
}

#[tokio::test]
async fn ag_10_a_directory_below_one_that_others_can_write_is_refused() {
    let dir = directory(0o777);
    fs::create_dir(dir.path().join("inner")).unwrap();
    assert!(refusal(&dir.path().join("inner/api.sock")).contains("can be written by others"));
}

#[tokio::test]
async fn ag_10_a_directory_that_is_a_link_is_refused() {
    let dir = directory(0o755);
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    assert!(refusal(&dir.path().join("link/api.sock")).contains("symbolic link"));
}

#[tokio::test]
async fn ag_10_what_lies_in_the_place_and_is_no_socket_is_left_alone() {
    let dir = directory(0o755);
    let path = dir.path().join("api.sock");
    fs::write(dir.path().join("target"), "precious").unwrap();
    symlink(dir.path().join("target"), &path).unwrap();
    assert!(refusal(&path).contains("no socket"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(refusal(&path).contains("no socket"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn ag_10_a_directory_or_socket_of_another_user_is_refused() {
    if !geteuid().is_root() {
        println!("skipped: only root can give files away");
        return;
    }
    let dir = directory(0o755);
    let path = dir.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert!(refusal(&path).contains("a socket of uid 65534"));
    std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
    assert!(refusal(&dir.path().join("other.sock")).contains("belongs to uid 65534"));
}

#[tokio::test]
async fn ag_10_a_stale_socket_is_taken_over() {
    let dir = directory(0o755);
    let path = dir.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists() && UnixStream::connect(&path).is_err());
    let _socket = BoundSocket::bind(&path, 0o777).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn ag_10_a_second_agent_on_the_same_path_is_refused_and_harms_nothing() {
    let dir = directory(0o755);
    let path = dir.path().join("api.sock");
    let first = BoundSocket::bind(&path, 0o777).unwrap();
    let error = BoundSocket::bind(&path, 0o777).unwrap_err();
    assert!(matches!(error, SocketError::Taken { .. }), "{error}");
    UnixStream::connect(&path).unwrap();
    drop(first);
    BoundSocket::bind(&path, 0o777).unwrap();
}

#[tokio::test]
async fn a_path_that_is_not_absolute_or_climbs_is_refused() {
    for path in ["api.sock", "./api.sock", "/run/../tmp/api.sock"] {
        assert!(refusal(Path::new(path)).contains("absolute"), "{path}");
    }
}
