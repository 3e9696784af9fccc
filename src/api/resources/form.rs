//! What a client sees of objects: whole, their metadata or a row of a table, in the group that its path names. Pure.

use schemas::{KindRow, Object, event};
use serde_json::{Value, json};

use super::Call;
use super::read::include;
use crate::api::content::{self, Shape};
use crate::api::status::ApiResult;
use crate::api::tables::{self, Include};

/// The form that a call's objects are shown in.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) row: &'static KindRow,
    pub(super) shape: Shape,
    include: Include,
}

impl Form {
    /// Reads what a client asks for.
    ///
    /// # Errors
    /// 406 for media types that are not written, 400 for an `includeObject` that is none.
    pub(super) fn of(call: &Call<'_>) -> ApiResult<Self> {
        let shape = call.accepted()?.shape;
        Ok(Self {
            row: call.target.row,
            shape,
            include: match shape {
                Shape::Table => include(&call.query)?,
                Shape::Whole | Shape::Metadata => Include::Nothing,
            },
        })
    }

    /// Shows the whole of a kind, in the way it is kept.
    #[cfg(test)]
    pub(super) fn whole(row: &'static KindRow) -> Self {
        Self {
            row,
            shape: Shape::Whole,
            include: Include::Nothing,
        }
    }

    /// Shows an object as an item of a list; in a table that is a row.
    pub(super) fn item(&self, object: Object, now_unix_seconds: i64) -> Value {
        let whole = |object| event::in_group(self.row.group, object).into_value();
        match self.shape {
            Shape::Whole => whole(object),
            Shape::Metadata => content::metadata_only(&object),
            Shape::Table => {
                let mut row = tables::row(self.row.kind, &object, now_unix_seconds, self.include);
                if self.include == Include::Whole {
                    row["object"] = whole(object);
                }
                row
            }
        }
    }

    /// Shows one object by itself; in a table that is one of a single row.
    pub(super) fn one(&self, object: Object, now_unix_seconds: i64) -> Value {
        let metadata = json!({"resourceVersion": object.str_at("/metadata/resourceVersion")});
        let item = self.item(object, now_unix_seconds);
        match self.shape {
            Shape::Whole | Shape::Metadata => item,
            Shape::Table => tables::table(self.row.kind, metadata, vec![item]),
        }
    }

    /// A list of items of this form. Its last field are the items.
    pub(super) fn list(&self, metadata: Value, items: Vec<Value>) -> Value {
        match self.shape {
            Shape::Whole => list_value(self.row, metadata, items),
            Shape::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": items,
            }),
            Shape::Table => tables::table(self.row.kind, metadata, items),
        }
    }
}

/// A list of whole objects.
pub(super) fn list_value(row: &KindRow, metadata: Value, items: Vec<Value>) -> Value {
    json!({
        "kind": format!("{}List", row.name),
        "apiVersion": row.api_version(),
        "metadata": metadata,
        "items": items,
    })
}
