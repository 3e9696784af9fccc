//! Which objects a list or a watch shows: `labelSelector`, `fieldSelector`, and the name in the path.

use schemas::selector::{FieldSelector, LabelSelector, SelectorError};
use schemas::{KindRow, Object};

use super::status::{ApiError, ApiResult};
use super::target::Query;

/// Both selectors of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
}

impl Selection {
    /// Reads both selectors of a query.
    ///
    /// # Errors
    /// 400 for what cannot be parsed, or a field that cannot be selected by.
    pub(crate) fn of(row: &KindRow, query: &Query) -> ApiResult<Self> {
        Self::by(query, |fields| FieldSelector::parse(row, fields))
    }

    /// [`Selection::of`] for what has no kind in the table, and no fields but those of its metadata.
    pub(crate) fn of_metadata(query: &Query) -> ApiResult<Self> {
        Self::by(query, FieldSelector::parse_metadata)
    }

    fn by(
        query: &Query,
        fields: impl FnOnce(&str) -> Result<FieldSelector, SelectorError>,
    ) -> ApiResult<Self> {
        let refused = |error: SelectorError| ApiError::bad_request(error.to_string());
        Ok(Self {
            labels: LabelSelector::parse(query.text("labelSelector")).map_err(refused)?,
            fields: fields(query.text("fieldSelector")).map_err(refused)?,
            name: None,
        })
    }

    /// Narrows the selection to one name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The one name that can match, if that is so.
    pub(crate) fn name(&self) -> Option<&str> {
        let by_field = self.fields.exactly("metadata.name");
        self.name.as_deref().or(by_field)
    }

    /// Tells whether nothing is left out.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields == FieldSelector::default() && self.name.is_none()
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.name.as_deref().is_none_or(|name| name == object.name())
            && self.labels.matches_object(object)
            && self.fields.matches(object)
    }
}
