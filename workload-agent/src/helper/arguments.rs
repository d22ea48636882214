//! Decides how `cmd_args` is cut into arguments: as spiffe-helper does, at blanks, double quotes holding an argument together.
//! Trusts nothing: a quote that does not close is an error. Never gives anything to a shell.

/// Cuts a line. Inside quotes, two of them stand for one.
pub(super) fn cut(line: &str) -> Result<Vec<String>, &'static str> {
    let (mut arguments, mut rest) = (Vec::new(), line);
    if line.is_empty() {
        return Ok(arguments);
    }
    loop {
        let (argument, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_argument(quoted)?,
            None => {
                let end = rest.find(' ').unwrap_or(rest.len());
                let (plain, after) = rest.split_at(end);
                if plain.contains('"') {
                    return Err(
                        "a double quote stands inside an argument that does not begin with one",
                    );
                }
                (plain.to_owned(), after)
            }
        };
        arguments.push(argument);
        match after.strip_prefix(' ') {
            Some(more) => rest = more,
            None => return Ok(arguments),
        }
    }
}

fn quoted_argument(text: &str) -> Result<(String, &str), &'static str> {
    let (mut argument, mut rest) = (String::new(), text);
    loop {
        let (part, after) = rest.split_once('"').ok_or("a double quote is not closed")?;
        argument.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                argument.push('"');
                rest = more;
            }
            None if after.is_empty() || after.starts_with(' ') => return Ok((argument, after)),
            None => return Err("something follows a closing double quote without a blank"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_cut_as_spiffe_helper_cuts_them() {
        for (line, expected) in [
            ("", &[][..]),
            ("a", &["a"]),
            ("a b", &["a", "b"]),
            ("a  b", &["a", "", "b"]),
            ("-c 'echo hello'", &["-c", "'echo", "hello'"]),
            (r#""this is one argument""#, &["this is one argument"]),
            (r#"-c "echo hello" x"#, &["-c", "echo hello", "x"]),
            (r#""with ONE "" in it""#, &[r#"with ONE " in it"#]),
            (r#""" b"#, &["", "b"]),
        ] {
            assert_eq!(cut(line).unwrap(), expected, "{line}");
        }
        for line in [r#"""#, r#""a"#, r#"a"b"#, r#""a"b"#, r#"x "a"#] {
            assert!(cut(line).is_err(), "{line}");
        }
    }
}
