//! Names of users and groups, from the host's own tables in the format of passwd(5) and group(5).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::executables::FileStamp;

/// Largest table that is read, in bytes; a larger one gives no names.
pub const MAX_TABLE_BYTES: u64 = 16 << 20;

/// One table, read again when the file has changed.
#[derive(Debug)]
pub struct NameTable {
    path: PathBuf,
    read: Mutex<Option<(FileStamp, Names)>>,
}

type Names = Arc<BTreeMap<u32, String>>;

impl NameTable {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), read: Mutex::default() }
    }

    /// The first name that the table has for a number.
    pub fn name(&self, number: u32) -> Option<String> {
        self.current()?.get(&number).cloned()
    }

    fn current(&self) -> Option<Names> {
        let mut file = File::open(&self.path).ok()?;
        let stamp = FileStamp::of(&file)?;
        let mut read = self.read.lock().expect("no holder of this lock panics");
        if let Some((known, names)) = &*read
            && *known == stamp
        {
            return Some(Arc::clone(names));
        }
        if stamp.size > MAX_TABLE_BYTES {
            tracing::warn!(path = %self.path.display(), "this table of names is too large to be read");
            return None;
        }
        let mut text = Vec::new();
        file.by_ref().take(MAX_TABLE_BYTES).read_to_end(&mut text).ok()?;
        let names = Arc::new(parse(&String::from_utf8_lossy(&text)));
        *read = Some((stamp, Arc::clone(&names)));
        Some(names)
    }
}

/// `name:password:number:…` per line, in both formats. The first line of a number counts, as for getpwuid(3). A name
/// that no selector could spell is left out.
fn parse(text: &str) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(_), Some(Ok(number))) =
            (fields.next(), fields.next(), fields.next().map(str::parse))
        else {
            continue;
        };
        if format!("unix:user:{name}").parse::<hanse_identity::Selector>().is_ok() {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_as_they_are_written_and_again_when_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        let table = NameTable::new(&path);
        assert_eq!(table.name(0), None, "no table, no name");
        std::fs::write(
            &path,
            "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n# x\n+::::::\na b:x:7:\n",
        )
        .unwrap();
        assert_eq!(table.name(0).as_deref(), Some("root"), "the first line counts");
        assert_eq!(table.name(7), None, "a name that no selector can spell");
        std::fs::write(&path, "shop:x:1000:\nother:x:4294967296:\n").unwrap();
        assert_eq!((table.name(0), table.name(1000).as_deref()), (None, Some("shop")));
    }
}
