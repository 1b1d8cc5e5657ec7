-- The back's: how many processes of the container the kernel had killed for want of memory when it
-- was first told to end. Those later ended it, the others did not.

ALTER TABLE containers ADD COLUMN ooms_before_stop INTEGER;
