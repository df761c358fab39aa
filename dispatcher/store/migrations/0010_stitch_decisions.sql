-- What operators decided about pairs of members stays in `requests`; which of it a stitch was
-- made with stands here.

ALTER TABLE stitches ADD COLUMN decisions TEXT NOT NULL DEFAULT '[]'; -- JSON list: requests.id
