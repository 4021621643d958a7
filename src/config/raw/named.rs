//! What stands under names and in lists: sections and values of their own, as many as the file has.

use super::*;

impl<'a> Section<'a> {
    /// Names and what they stand for, names checked to be `N`. Nothing if the key is missing, which has been said.
    fn names<N: FromText>(&self, key: &str) -> (&'static Field, Vec<Spot<&'a Entry>>) {
        let row = self.row(key, Shape::Named);
        let Some(entry) = self.find(key) else {
            self.complain_if_required(row);
            return (row, Vec::new());
        };
        let entries: &[Entry] = match &entry.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            other => {
                self.error(
                    key,
                    format!(
                        "expected names and what they hold, `{key}: {{a: ...}}`, found {}",
                        other.describe()
                    ),
                );
                return (row, Vec::new());
            }
        };
        match entries.is_empty() {
            true => self.error(key, "is empty: at least one must be given"),
            false => self.count(row, entries.len()),
        }
        let path = self.path_of(key);
        let spot = |entry: &'a Entry| Spot {
            at: entry.at,
            path: join(&path, &shorten(&entry.key)),
            value: entry,
        };
        let spots: Vec<_> = entries
            .iter()
            .filter(|entry| once(self.notes, &path, entry))
            .map(spot)
            .collect();
        for spot in &spots {
            if let Err(message) = N::from_text(&spot.value.key) {
                self.notes.error(spot, message);
            }
        }
        (row, spots)
    }

    /// The sections below `key`, each under a name of the user's choice.
    pub fn named(&self, key: &str) -> Vec<Section<'a>> {
        let (row, names) = self.names::<Name>(key);
        let rule = join(row.path, "*");
        self.notes.note_read(field(&rule).expect("a row for what is named"));
        let open = |Spot { at, path, value: entry }: Spot<&'a Entry>| {
            Section::open(
                self.notes,
                rule.clone(),
                entry.key.clone(),
                Spot {
                    at,
                    path,
                    value: &entry.node,
                },
            )
        };
        names.into_iter().map(open).collect()
    }

    /// Named values; `None` for those that are wrong, which has been said.
    pub fn named_values<T: FromText>(&self, key: &str) -> Vec<(String, Option<Spot<T>>)> {
        let values = self.values_by::<Name, T>(key);
        values.into_iter().map(|(name, value)| (name.value, value)).collect()
    }

    /// As [`named_values`](Self::named_values), by names of another kind, with their places.
    pub fn values_by<N: FromText, T: FromText>(&self, key: &str) -> Vec<(Spot<String>, Option<Spot<T>>)> {
        let (row, names) = self.names::<N>(key);
        let row = field(&join(row.path, "*")).expect("a row for the values");
        self.notes.note_read(row);
        debug_assert_eq!(row.kind, T::KIND, "{}", row.path);
        let read = |spot: Spot<&'a Entry>| {
            let (entry, at) = (spot.value, spot.value.node.at);
            let name = Spot {
                at: spot.at,
                path: spot.path.clone(),
                value: entry.key.clone(),
            };
            let value = self.parse(
                row,
                Spot {
                    at,
                    path: spot.path.clone(),
                    value: &entry.node,
                },
            );
            (
                name,
                value.map(|value| Spot {
                    at,
                    path: spot.path,
                    value,
                }),
            )
        };
        names.into_iter().map(read).collect()
    }

    /// Named lists of scalars; one alone may stand without brackets. What is wrong is left out, and has been said.
    pub fn named_lists<T: FromText>(&self, key: &str) -> Vec<(Spot<String>, Vec<Spot<T>>)> {
        let (row, names) = self.names::<Name>(key);
        let row = field(&join(row.path, "*")).expect("a row for the lists");
        self.notes.note_read(row);
        debug_assert_eq!(row.kind, T::KIND, "{}", row.path);
        let read = |spot: Spot<&'a Entry>| {
            let entry = spot.value;
            let nodes: Vec<(String, &Node)> = match &entry.node.value {
                Value::List(nodes) => (0..)
                    .zip(nodes)
                    .map(|(i, n)| (format!("{}[{i}]", spot.path), n))
                    .collect(),
                Value::Null => Vec::new(),
                _ => vec![(spot.path.clone(), &entry.node)],
            };
            let parse = |(path, node): (String, &'a Node)| {
                let at = node.at;
                let value = self.parse(
                    row,
                    Spot {
                        at,
                        path: path.clone(),
                        value: node,
                    },
                )?;
                Some(Spot { at, path, value })
            };
            let name = Spot {
                at: spot.at,
                path: spot.path.clone(),
                value: entry.key.clone(),
            };
            (name, nodes.into_iter().filter_map(parse).collect())
        };
        names.into_iter().map(read).collect()
    }

    /// A list of sections. A scalar in it stands for a section with the key `short` alone.
    pub fn items(&self, key: &str, short: &'static str) -> Vec<Section<'a>> {
        let row = self.row(key, Shape::Items);
        let Some(entry) = self.find(key) else {
            self.complain_if_required(row);
            return Vec::new();
        };
        let nodes: &[Node] = match &entry.node.value {
            Value::List(nodes) => nodes,
            Value::Null => &[],
            Value::Scalar(_) => std::slice::from_ref(entry.node),
            Value::Map(_) => {
                self.error(key, "expected a list, found a mapping: begin each entry with `- `");
                return Vec::new();
            }
        };
        self.count(row, nodes.len());
        let rule = join(row.path, "*");
        let open = |spot: Spot<&'a Node>| match &spot.value.value {
            Value::Scalar(_) => Section {
                notes: self.notes,
                rule: rule.clone(),
                broken: false,
                entries: vec![Given {
                    key: short,
                    at: spot.at,
                    node: spot.value,
                }],
                spot: spot.map(|_| String::new()),
            },
            _ => Section::open(self.notes, rule.clone(), String::new(), spot),
        };
        self.numbered(key, nodes).into_iter().map(open).collect()
    }
}
